"""In one pass every row's tokens add what its own adapter says: as peft does alone, as merged weights would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from danlu.models.adapters import Factors, read_adapter
from danlu.models.executor import Executor, TorchExecutor
from danlu.models.load import load_model
from danlu.models.lora import block_linears
from danlu.models.model import Model
from danlu.models.paged import Segment
from tests.models.native.cases import cache_of, family, native, needs_kernels, plain
from tests.models.peer import logits_of, our_logits, save_llama, some_ids
from tests.train.adapters import ALL, peer_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks transformers
]
EXECUTORS = pytest.mark.parametrize("make", [plain, pytest.param(native, marks=needs_kernels)], ids=["torch", "native"])


def made_by_peft(folder: Path, base: Path, seed: int, **changes: Any) -> peft.PeftModel:
    """An adapter of peft's, in memory and in a folder."""
    torch.manual_seed(seed)
    numbers: dict[str, Any] = {"r": 2 + seed, "lora_alpha": 5, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(**{**numbers, **changes}, init_lora_weights=False)
    theirs = peft.get_peft_model(peer_model(base), config).eval()
    theirs.save_pretrained(str(folder))
    return theirs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder)
    return folder


@EXECUTORS
def test_four_adapters_and_none_in_one_pass_are_what_peft_says_of_each(tmp_path: Path, base: Path, make: Any) -> None:
    model = load_model(base, precision="fp32")
    executor: Executor = make(model)
    ids = [some_ids(5 + 2 * row, seed=row) for row in range(5)]
    expected = [our_logits(model, ids[0])]
    kinds: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}, {}]
    for number, changes in enumerate(kinds, start=1):
        theirs = made_by_peft(tmp_path / str(number), base, number, **changes)
        expected.append(logits_of(theirs, ids[number]))  # pyright: ignore[reportArgumentType]
        executor.put_adapter(number, read_adapter(model, tmp_path / str(number)).factors)
    segments = [Segment([row], 0, len(ids[row]), adapter=row) for row in range(5)]
    flat = [token for row in ids for token in row]
    together = executor.run(flat, segments, range(len(flat))).clone().split([len(row) for row in ids])
    for row in range(5):
        torch.testing.assert_close(together[row], expected[row], atol=1e-4, rtol=1e-4)
        alone = executor.run(ids[row], [segments[row]], range(len(ids[row])))
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def some_factors(model: Model, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For every linear of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (linear, _) in block_linears(model).items():
        outputs, inputs = linear.weight.shape
        down, up = (torch.randn(size, generator=generator) * 0.1 for size in ((3, inputs), (outputs, 3)))
        found[name] = down, up
    return found


def merged(model: Model, factors: Factors) -> Model:
    for name, (down, up) in factors.items():
        weight = model.network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data += up @ down
    return model


@pytest.mark.parametrize("name", ["gpt2", "mamba2", "gemma2", "qwen3-next-plain"])
def test_layers_of_every_kind_take_adapters(tmp_path: Path, name: str) -> None:
    model = family(name, tmp_path)
    factors = some_factors(model, 1)
    ids = [some_ids(7, seed=row, vocabulary=90) for row in range(2)]
    executor = plain(model)
    executor.put_adapter(2, factors)
    segments = [Segment([0], 0, 7, 0, adapter=2), Segment([1], 0, 7, 1)]
    found = executor.run(ids[0] + ids[1], segments, range(14)).split(7)
    torch.testing.assert_close(found[1], our_logits(family(name, tmp_path), ids[1]), atol=1e-4, rtol=1e-4)
    expected = our_logits(merged(family(name, tmp_path), factors), ids[0])
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


@EXECUTORS
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_an_adapter_on_8_bit_or_packed_weights_is_close_to_merging_it_first(
    tmp_path: Path, base: Path, make: Any, scheme: str | None
) -> None:
    factors = some_factors(load_model(base, precision="fp32"), 1)
    ids = some_ids(20)
    expected = our_logits(merged(load_model(base, precision="fp32"), factors), ids)
    executor: Executor = make(load_model(base, precision="fp32", scheme=scheme, is_packed=True))
    executor.put_adapter(1, factors)
    found = executor.run(ids, [Segment([0], 0, 20, adapter=1)], range(20))
    error = float((found - expected).norm() / expected.norm())
    assert error < (1e-4 if scheme is None else 0.08), error


def test_an_emptied_adapter_leaves_the_network_as_it_was(base: Path) -> None:
    model = load_model(base, precision="fp32")
    before = {name: len(module._forward_hooks) for name, module in model.network.named_modules()}
    executor = TorchExecutor(model, cache_of(model))
    ids = some_ids(6)
    segment = Segment([0], 0, 6, adapter=1)
    expected = our_logits(model, ids)
    executor.put_adapter(1, some_factors(model, 1))
    assert not torch.allclose(executor.run(ids, [segment], range(6)), expected)
    assert torch.equal(our_logits(model, ids), expected), "others who use the network hear nothing of adapters"
    executor.put_adapter(1, {})
    assert {name: len(module._forward_hooks) for name, module in model.network.named_modules()} == before
    torch.testing.assert_close(executor.run(ids, [segment], range(6)), expected, atol=1e-5, rtol=1e-5)
