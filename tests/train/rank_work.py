"""What each process of a test does: `python -m tests.train.rank_work WORK ARGUMENTS`, one JSON line as the answer."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core import plugins
from danlu.core.errors import DanluError
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder, Network
from danlu.train.checkpoint import load_together, save_together
from danlu.train.clip import clip_by_norm
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.optim import OptimConfig, make_optimizer
from danlu.train.parallel import ParallelKind, Reducer, spread
from danlu.train.remat import checkpoint_blocks
from danlu.train.weights import trainable
from danlu.train.world import World
from tests.train.rank_sft import finetune_all, finetune_cramped

VOCABULARY = 50
STEPS = 10
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
_T5: dict[str, Any] = {
    "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "feed_forward_proj": "relu", "tie_word_embeddings": True, "dropout_rate": 0.0, "decoder_start_token_id": 0,
    "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {"model_type": "llama", **_SIZES},
    "lora": {"model_type": "llama", **_SIZES},
    "experts": {"model_type": "mixtral", **_SIZES, "num_local_experts": 3, "num_experts_per_tok": 2},
    "seq2seq": _T5,
}


@dataclass
class Outcome:
    """What a run of some steps came to."""

    losses: list[float]
    norms: list[float]
    state: dict[str, Tensor]
    network: nn.Module
    weights: Any


def make(case: str) -> Model:
    """A tiny model with the same random weights in every process."""
    theirs = MODELS[case]
    architecture = plugins.load("models.archs", theirs["model_type"])
    torch.manual_seed(0)
    model = Model(architecture.read_config(theirs).make(), theirs, architecture, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.network.parameters():
            nn.init.normal_(parameter, std=0.3)
    if case == "lora":
        for parameter in add_lora(model, LoraConfig(rank=2)):
            nn.init.normal_(parameter, std=0.3)
    return model


def batches(step: int) -> list[Tensor]:
    """Four rows of unequal lengths; in step 3 only the first has more than a token to read."""
    generator = torch.Generator().manual_seed(step)
    lengths = [9, 2, 2, 2] if step == 3 else [9, 4, 6, 7]
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths]


def loss_of(network: Network, row: Tensor, *, is_supervised: bool) -> Tensor:
    """Summed cross-entropy of a row's tokens after the first; of none, a zero that has gradients."""
    ids, targets = row[:-1], row[1:]
    if isinstance(network, EncoderDecoder):
        memory = network.encode(row.flip(0), [row.shape[0]])
        attend = PackedAttend([ids.shape[0]], ids.device, memory=memory)
        hidden = network(ids, row_positions([ids.shape[0]]), attend)
    else:
        hidden = network.rows(ids, [ids.shape[0]])
    if not is_supervised:
        hidden, targets = hidden[:0], targets[:0]
    return nn.functional.cross_entropy(network.logits(hidden).float(), targets, reduction="sum")


def train(case: str, kind: ParallelKind, world: World, dtype: torch.dtype = torch.float32) -> Outcome:
    """Some steps of AdamW; every process takes rows rank, rank + size, …, of which step 3 supervises the first only."""
    network = make(case).network.train()
    if case != "lora":
        network.requires_grad_(True)
    checkpoint_blocks(network, "full" if kind == "fsdp" else "none")
    weights, reduction = spread(network, trainable(network), dtype, world, kind)
    optimizer = make_optimizer(weights.masters, OptimConfig(learning_rate=1e-2, weight_decay=0.1))
    losses: list[float] = []
    norms: list[float] = []
    for step in range(STEPS):
        rows = list(enumerate(batches(step)))[world.rank :: world.size]
        loss = count = 0.0
        for place, (number, row) in enumerate(rows):
            is_last = place == len(rows) - 1
            is_supervised = step != 3 or number == 0
            if is_last:
                reduction.before_last()
            if is_supervised or kind == "fsdp":
                part = loss_of(network, row, is_supervised=is_supervised)
                part.backward()
                loss += float(part.detach())
                count += (row.shape[0] - 1) * is_supervised
            assert is_last or nothing_has_travelled(network, reduction), "only the last micro-batch may communicate"
        loss, count = world.sum([loss, count])  # before gradients are there: their order must not matter
        reduction.finish()
        weights.scale_gradients(1.0 / count)
        norms.append(clip_by_norm({n: m.grad for n, m in weights.masters.items() if m.grad is not None}, 1.0))
        optimizer.step()
        weights.round()
        weights.clear_gradients()
        losses.append(loss / count)
    moments = {f"optimizer.{name}": tensor for name, tensor in optimizer.state_tensors().items()}
    return Outcome(losses, norms, {**weights.state(), **moments}, network, weights)


def nothing_has_travelled(network: nn.Module, reduction: Any) -> bool:
    """Whether all gradients are still this process's own."""
    if isinstance(reduction, Reducer):
        return not reduction._sent
    return all(parameter.grad is None for parameter in network.parameters() if hasattr(parameter, "to_local"))


def train_all(world: World, folder: str) -> dict[str, Any]:
    """Every case both ways; checkpoints and whole weights of one of them go into ``folder``."""
    answers: dict[str, Any] = {}
    for case in MODELS:
        for kind in ("ddp", "fsdp"):
            outcome = train(case, kind, world)
            answers[f"{case}-{kind}"] = {"losses": outcome.losses, "norms": outcome.norms}
            save_together(Path(folder) / f"{case}-{kind}", STEPS, outcome.state, {"case": case}, world)
            back = load_together(Path(folder) / f"{case}-{kind}", world, outcome.state)
            assert back is not None
            answers[f"{case}-{kind}"]["reloads"] = all(
                type(back.tensors[name]) is type(tensor.detach())
                and torch.equal(local(back.tensors[name]), local(tensor))
                for name, tensor in outcome.state.items()
            )
            outcome.weights.put_back()
            if world.is_first:
                state = {name: float(t.double().square().sum()) for name, t in outcome.network.state_dict().items()}
                answers[f"{case}-{kind}"]["whole"] = state
    return answers


def local(tensor: Tensor) -> Tensor:
    """The rows of this process."""
    return getattr(tensor, "to_local", lambda: tensor)().detach()


def read_one(world: World, folder: str) -> dict[str, Any]:
    """Read what one process wrote, spread over these."""
    network = make("decoder").network.requires_grad_(True)
    weights, _ = spread(network, trainable(network), torch.float32, world, "fsdp")
    found = load_together(Path(folder), world, weights.state())
    assert found is not None
    weights.load_state({name: found.tensors[name] for name in weights.masters})
    weights.put_back()
    return {"sum": float(sum(p.double().sum() for p in network.parameters()))} if world.is_first else {}


def talk(world: World) -> dict[str, Any]:
    """Sums, maxima and JSON."""
    tensor = torch.full((2,), float(world.rank))
    world.share_([tensor])
    return {
        "sum": world.sum([1.0, world.rank, 2.0**40]),
        "max": world.max([world.rank, -world.rank]),
        "gathered": world.gather_json({"rank": world.rank, "text": "é" * world.rank}),
        "shared": world.share_json({"from": world.rank}),
        "tensor": tensor.tolist(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    }


def fail_to_write(world: World, folder: str) -> dict[str, Any]:
    """The second process writes something that is not there to be written."""
    tensors = {"a": torch.ones(3)}
    save_together(Path(folder), 1, tensors, {}, world)
    try:
        save_together(Path(folder) if world.is_first else Path("/proc/nowhere"), 2, tensors, {}, world)
    except DanluError as error:
        return {"error": str(error)}
    return {}


def talk_to_nobody(world: World) -> dict[str, Any]:
    """Never called: two processes were promised and one came."""
    raise AssertionError


def count_up(world: World, folder: str, fault: str) -> dict[str, Any]:
    """Eight steps with checkpoints; the first time, process 1 meets its fault in the fourth."""
    found = load_together(Path(folder), world)
    step, total = (found.step, found.tensors["total"]) if found else (0, torch.zeros(1))
    started = step
    while step < 8:
        if world.rank == 1 and step == 3 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "hangs_briefly":
                time.sleep(7.0)  # longer than the others wait
        if fault == "sleeps":
            time.sleep(0.5)
        total = total + world.sum([world.rank + 1.0])[0]
        step += 1
        save_together(Path(folder), step, {"total": total}, {}, world)
    return {"started": started, "total": float(total)}


_WORK = (train_all, read_one, talk, fail_to_write, talk_to_nobody, count_up, finetune_all, finetune_cramped)
WORK: dict[str, Callable[..., dict[str, Any]]] = {work.__name__: work for work in _WORK}


def gloo_threads() -> list[str]:
    """Threads of gloo in this process, where the system tells (Linux)."""
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    return [name for name in names if "gloo" in name]


def main(name: str, *arguments: str) -> int:
    torch.set_num_threads(1)
    timeout_s = float(os.environ.get("TEST_TIMEOUT_S", "60"))
    try:
        if name == "talk_to_nobody":
            os.environ["WORLD_SIZE"] = "2"
        with World.from_environment(timeout_s=timeout_s, device=torch.device("cpu")) as world:
            answer = WORK[name](world, *arguments)
        assert not gloo_threads(), "a thread that outlives the world may abort the process at its end"
        print(json.dumps(answer), flush=True)
    except DanluError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def lines(outputs: Sequence[str]) -> Iterator[Any]:
    """The answers of processes."""
    yield from (json.loads(output.strip().splitlines()[-1]) for output in outputs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
