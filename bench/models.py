"""The core against transformers on the same random weights: forward passes, training steps, one decoding step.

    make bench-models                  (ARGS="--only llama,bert" for some; --rounds N)

Each case makes a model with transformers in the shape of a published one, saves it, loads it with danlu, checks that
both say the same, and times them in turn. transformers runs as it comes: eager, its default (SDPA) attention, the same
number type. Forward passes and decoding run on packed weights, as danlu.load gives them; a step is forward, loss and
backward with gradients of all weights, on plain ones, and no optimiser. Writes
bench/results/models.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import in_turn, print_ratios, refuse_when_busy, write_result
from torch import Tensor, nn

from danlu.models.attend import Memory, PackedAttend, row_positions
from danlu.models.fastest import make_executor
from danlu.models.load import load_model
from danlu.models.model import Model, Precision
from danlu.models.network import EncoderDecoder, Network
from danlu.models.paged import PagedCache, Segment

_REPEATS = 60
"""Steps of one timing: threads of the other side go on spinning for a while, and steps are short."""
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]
"""The same work, ours and theirs; both return what they computed."""
ALL = "llama,decode1,bert,bart,vit"
SMOLLM = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
"""Shape of SmolLM2-135M."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=ALL, help="cases to run; the result is written for all only")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument("--anyway", action="store_true", help="start on a busy machine too")
    arguments = parser.parse_args()
    load = refuse_when_busy()
    transformers.utils.logging.disable_progress_bar()
    runs: dict[str, Any] = {}
    for case in arguments.only.split(","):
        for name, (ours, theirs), repeats in CASES[case]():
            with torch.enable_grad() if "_step" in name else torch.inference_mode():
                difference = float((ours().float() - theirs().float()).abs().max())
                runs[name] = in_turn(ours, theirs, arguments.rounds, repeats=repeats) | {"difference": difference}
            print_ratios({name: runs[name]})
            gc.collect()
    ratios = {name: run["ratio"] for name, run in runs.items()}
    for case in {name.rpartition("_")[0] for name in runs if name.endswith(("fp32", "bf16"))}:
        ratios[case] = min(ratios[f"{case}_{suffix}"] for suffix in ("fp32", "bf16"))  # the worse of the two types
    print(f"geometric mean {statistics.geometric_mean(ratios.values()):.2f}")
    if arguments.only == ALL:  # a part would pass for the whole
        print(write_result("models", load, runs, ratios, ("transformers", "numpy")))
    return 0


def load_both(peer: Any, dtype: torch.dtype) -> tuple[Network, Network, Any]:
    """Ours to be trained, ours packed as ``danlu.load`` and the server pack it, and theirs, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        precision = "fp32" if dtype == torch.float32 else "bf16"
        network = load_model(Path(folder), precision=precision).network
        packed = load_model(Path(folder), precision=precision, is_packed=True).network
    return network.requires_grad_(True), packed, peer.to(dtype).eval()


def load_packed(peer: Any, precision: Precision, scheme: str | None = None) -> Model:
    """Ours as danlu.load and the server have it."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return load_model(Path(folder), precision=precision, scheme=scheme, is_packed=True)


def both_types(name: str, make: Callable[[torch.dtype], Iterator[tuple[str, Pair]]]) -> Iterator[tuple[str, Pair, int]]:
    for dtype, suffix in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for kind, pair in make(dtype):
            yield f"{name}_{kind}_{suffix}", pair, 1


def forward_and_step(
    ours: Callable[[Any], Tensor], theirs: Callable[[], Tensor], networks: tuple[Network, Network, Any], targets: Tensor
) -> Iterator[tuple[str, Pair]]:  # fmt: skip
    """The two timings of a case: the output, and the gradient of a mean cross-entropy over it."""
    network, packed, peer = networks
    yield "forward", (lambda: ours(packed), theirs)
    yield "step", (lambda: step(lambda: ours(network), network, targets), lambda: step(theirs, peer, targets))


def step(forward: Callable[[], Tensor], module: nn.Module, targets: Tensor) -> Tensor:
    """Forward, loss, backward; the loss."""
    module.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(forward().float(), targets)
    loss.backward()
    return loss.detach()


def llama() -> Iterator[tuple[str, Pair, int]]:
    """A 135M decoder on one row of 512 tokens, logits of every token."""

    def make(dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
        torch.manual_seed(0)
        networks = load_both(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMOLLM)), dtype)
        ids, targets = torch.randint(49152, (512,)), torch.randint(49152, (512,))
        yield from forward_and_step(
            lambda network: network.logits(network.rows(ids, [512])),
            lambda: networks[2](ids[None]).logits[0],
            networks,
            targets,
        )

    return both_types("llama", make)


def decode1() -> Iterator[tuple[str, Pair, int]]:
    """One new token after 128, one row, weights packed; once more with ours in int8 against theirs in bf16."""
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        torch.manual_seed(0)
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMOLLM))
        model = load_packed(peer, precision)
        quantised = load_packed(peer, "bf16", "int8")
        peer = peer.to(dtype).eval()
        ids = torch.randint(49152, (129,))
        with torch.inference_mode():
            theirs = transformers.DynamicCache()
            peer(ids[None], past_key_values=theirs)
        yield f"decode1_{precision}", _one_step(model, peer, theirs, ids), _REPEATS
        if precision == "bf16":
            yield "decode1_int8", _one_step(quantised, peer, theirs, ids), _REPEATS


def _one_step(model: Model, peer: Any, theirs: Any, ids: Tensor) -> Pair:
    pages, last = range(4), ids[128:]
    executor = make_executor(model, PagedCache(model.stack_config, len(pages), model.activation_dtype))
    executor.run(ids[:128].tolist(), [Segment(pages, 0, 128)], [127])

    def ours_step() -> Tensor:  # logits as the sampler reads them, where the next step overwrites them
        return executor.run(last.tolist(), [Segment(pages, 128, 1)], [0])[0]

    def their_step() -> Tensor:
        theirs.crop(-1)
        return peer(last[None], past_key_values=theirs, use_cache=True).logits[0, 0]

    return ours_step, their_step


def bert() -> Iterator[tuple[str, Pair, int]]:
    """BERT-base with a classification head, 16 rows of 128 tokens."""

    def make(dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
        )
        networks = load_both(transformers.BertForSequenceClassification(config), dtype)
        ids, targets, lengths = torch.randint(30522, (16, 128)), torch.randint(3, (16,)), [128] * 16
        yield from forward_and_step(
            lambda network: network.head(network.rows(ids.flatten(), lengths), lengths),
            lambda: networks[2](ids).logits,
            networks,
            targets,
        )

    return both_types("bert", make)


def bart() -> Iterator[tuple[str, Pair, int]]:
    """BART-base, 4 sources of 256 tokens, 64 target tokens each, logits of every target token."""

    def make(dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
        torch.manual_seed(0)
        config = transformers.BartConfig(
            vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
            decoder_attention_heads=12, encoder_ffn_dim=3072, decoder_ffn_dim=3072, dropout=0.0,
        )  # fmt: skip
        networks = load_both(transformers.BartForConditionalGeneration(config), dtype)
        source, target = torch.randint(4, 50265, (4, 256)), torch.randint(4, 50265, (4, 64))
        targets, lengths = torch.randint(50265, (256,)), [64] * 4

        def ours(network: EncoderDecoder) -> Tensor:
            memory = Memory(network.encoder.rows(source.flatten(), [256] * 4), (256,) * 4)
            attend = PackedAttend(lengths, memory=memory)
            return network.logits(network(target.flatten(), row_positions(lengths), attend))

        yield from forward_and_step(
            ours,
            lambda: networks[2](input_ids=source, decoder_input_ids=target).logits.flatten(0, 1),
            networks,
            targets,
        )

    return both_types("bart", make)


def vit() -> Iterator[tuple[str, Pair, int]]:
    """ViT-S/16 with a classification head, 8 images of 224 × 224."""

    def make(dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
        )
        networks = load_both(transformers.ViTForImageClassification(config), dtype)
        images, targets, lengths = torch.randn(8, 3, 224, 224, dtype=dtype), torch.randint(1000, (8,)), [197] * 8
        yield from forward_and_step(
            lambda network: network.head(network.rows(images, lengths), lengths),
            lambda: networks[2](images).logits,
            networks,
            targets,
        )

    return both_types("vit", make)


CASES: dict[str, Callable[[], Iterator[tuple[str, Pair, int]]]] = {
    "llama": llama, "decode1": decode1, "bert": bert, "bart": bart, "vit": vit,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
