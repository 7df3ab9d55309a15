"""What every family in models/archs promises: it computes what transformers computes, and gives back what it took.

The cases are in tests/models/cases/; each is a tiny model of transformers with random weights.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig, add_lora, lora_layers
from danlu.train.merge import merge_lora
from tests.models.case import Case, Tokens, save_peer
from tests.models.families import FAMILIES, families

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Pair:
    """Their model and the folder it is saved in."""

    case: Case
    peer: PreTrainedModel
    folder: Path

    def load(self, scheme: str | None = None) -> Model:
        """Ours."""
        return load_model(self.folder, precision="fp32", scheme=scheme)

    def ours(self, model: Model) -> list[Tensor]:
        """What we answer to the case's rows."""
        return self.case.compare.ours(model, self.case.compare.rows(self.case))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    case = FAMILIES[request.param]
    peer = case.make()
    folder = tmp_path_factory.mktemp(request.param)
    yield Pair(case, peer, save_peer(peer, folder))
    shutil.rmtree(folder)


@pytest.fixture
def copied(pair: Pair, tmp_path: Path) -> Pair:
    """The same pair with a folder that may be damaged."""
    return Pair(pair.case, pair.peer, Path(shutil.copytree(pair.folder, tmp_path / "copy")))


def whole_name(model: Model, name: str) -> str:
    """A tensor's name with the prefix that a model without a head leaves out."""
    known = {name for source in model.architecture.weights(model.config).values() for name in source.names}
    prefix = model.architecture.prefix
    return prefix + name if prefix + name in known else name


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor], atol: float = 0.0) -> None:
    """Row by row."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0.01, "an answer of zeros proves nothing"
        torch.testing.assert_close(mine, other, atol=atol, rtol=atol)


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_rows_answer_as_padded_rows_of_transformers(pair: Pair, side: str) -> None:
    compare = pair.case.compare
    rows = compare.rows(pair.case)
    same(compare.ours(pair.load(), rows), compare.theirs(pair.case, pair.peer, rows, side), pair.case.atol)  # pyright: ignore[reportArgumentType]


def test_packed_rows_answer_as_each_row_alone(pair: Pair) -> None:
    model, compare = pair.load(), pair.case.compare
    alone = [compare.ours(model, [row])[0] for row in compare.rows(pair.case)]
    same(pair.ours(model), alone, 1e-5)


def gradients(pair: Pair, model: Model, batches: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Of every weight, of a scalar to which every number of every answer adds its own share; batch after batch."""
    compare = pair.case.compare
    rows = compare.rows(pair.case)
    answer = inspect.unwrap(type(compare).ours)  # with gradients
    model.network.zero_grad()
    for batch in batches:
        loss = torch.zeros(())
        for number, found in zip(batch, answer(compare, model, [rows[i] for i in batch]), strict=True):
            loss = loss + (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(number))).sum()
        loss.backward()
    return {name: weight.grad for name, weight in model.network.named_parameters() if weight.grad is not None}


def test_packed_rows_give_the_gradients_of_each_row_alone(pair: Pair) -> None:
    model = pair.load()
    model.network.requires_grad_(True)
    everything = range(len(pair.case.compare.rows(pair.case)))
    packed, alone = (gradients(pair, model, batches) for batches in ([everything], [[i] for i in everything]))
    assert packed.keys() == alone.keys() == {name for name, _ in model.network.named_parameters()}
    for name, gradient in packed.items():
        assert (gradient - alone[name]).norm() <= 1e-4 * alone[name].norm(), name


def test_saving_and_loading_again_changes_no_tensor(pair: Pair, tmp_path: Path) -> None:
    model = pair.load()
    save_model(model, tmp_path / "one")
    again = load_model(tmp_path / "one", precision="fp32")
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.config == model.config


def test_transformers_loads_what_we_save(pair: Pair, tmp_path: Path) -> None:
    save_model(pair.load(), tmp_path / "one")
    again, found = type(pair.peer).from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        tmp_path / "one",
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation=pair.case.numbers.get("attn_implementation"),
    )
    assert not any(found.values())
    compare = pair.case.compare
    rows = compare.rows(pair.case)
    before = compare.theirs(pair.case, pair.peer, rows, "right")
    same(compare.theirs(pair.case, again.eval(), rows, "right"), before, 1e-5)


def test_a_checkpoint_without_the_prefix_loads(copied: Pair) -> None:
    prefix = copied.load().architecture.prefix
    tensors = load_file(copied.folder / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(bare, copied.folder / "model.safetensors", metadata={"format": "pt"})
    before = copied.case.compare.theirs(copied.case, copied.peer, copied.case.compare.rows(copied.case), "right")
    same(copied.ours(copied.load()), before, copied.case.atol)


@pytest.mark.parametrize("pair", families(lambda case: case.ties), indirect=True)
def test_a_tensor_stored_twice_must_be_one(copied: Pair) -> None:
    model = copied.load()
    copies = model.architecture.copies(model.config)
    tensors = load_file(copied.folder / "model.safetensors")
    if not set(copies.values()) <= tensors.keys():  # a bare model
        prefix = model.architecture.prefix
        copies = {copy.removeprefix(prefix): original.removeprefix(prefix) for copy, original in copies.items()}
    twice = {**tensors, **{copy: tensors[original].clone() for copy, original in copies.items()}}
    save_file(twice, copied.folder / "model.safetensors")
    same(copied.ours(copied.load()), copied.ours(model))
    twice[next(iter(copies))] += 1.0
    save_file(twice, copied.folder / "model.safetensors")
    with pytest.raises(ModelError, match="but the config says they are one"):
        copied.load()


def test_tensors_that_do_not_fit_are_one_error(copied: Pair) -> None:
    model = copied.load()
    tensors = load_file(copied.folder / "model.safetensors")
    needed = [name for name in sorted(tensors) if name not in model.architecture.zeros]
    first, second, *_ = (name for name in needed if tensors[name].dim() > 1)
    tensors["surprise.weight"] = tensors.pop(first)
    tensors[second] = tensors[second][:, :-1].contiguous()
    first, second = (whole_name(model, name) for name in (first, second))
    save_file(tensors, copied.folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        copied.load()
    for part in (f"1 missing ({first})", "1 not of this family (surprise.weight)", f"1 of another shape ({second} is"):
        assert part in str(error.value)


def test_it_writes_and_shares_tensors_where_transformers_does(pair: Pair) -> None:
    model = pair.load()
    writes = isinstance(model.config.head, LMHeadConfig) and model.config.stack.is_causal
    assert (writes, bool(model.architecture.copies(model.config))) == (pair.case.writes, pair.case.ties)


def test_a_key_it_does_not_know_is_refused(pair: Pair) -> None:
    model = pair.load()
    with pytest.raises(ModelError, match=r"has an unknown key 'surprise'"):
        model.architecture.read_config({**model.theirs, "surprise": 1})


def test_its_names_cover_every_weight_once(pair: Pair) -> None:
    model = pair.load()
    weights = model.architecture.weights(model.config)
    theirs = [name for source in weights.values() for name in source.names]
    assert len(set(theirs)) == len(theirs)
    stored = {whole_name(model, name): t.numel() for name, t in load_file(pair.folder / "model.safetensors").items()}
    buffers = sum(weight.numel() for name, weight in pair.peer.named_buffers() if name in stored)
    fixed = sum(weight.numel() for weight in pair.peer.parameters() if not weight.requires_grad)
    assert sum(stored[name] for name in theirs) == pair.peer.num_parameters() - fixed + buffers
    assert model.num_parameters() in (pair.peer.num_parameters() - fixed, pair.peer.num_parameters() - fixed + buffers)


# ---- adapters and 8 bits ---------------------------------------------------------------------------------------------


def adapted(pair: Pair) -> tuple[Model, LoraConfig]:
    """Ours with an adapter on every linear of every block, far from zero."""
    model, config = pair.load(), LoraConfig(rank=2, alpha=4.0)
    torch.manual_seed(3)
    for parameter in add_lora(model, config):
        torch.nn.init.normal_(parameter, std=0.1)
    return model, config


def test_an_adapter_is_on_every_linear_of_every_block_and_merges(pair: Pair) -> None:
    model, _ = adapted(pair)
    with torch.no_grad():
        wrapped = {name: layer.base for name, layer in lora_layers(model).items()}
        layers = [layer for name, layer in model.network.named_modules() if ".blocks." in f".{name}"]
        plain = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        assert plain
        assert {id(base) for base in wrapped.values()} >= {id(linear) for linear in plain}
        before, base = pair.ours(model), pair.ours(pair.load())
        assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(before, base, strict=True))
        assert merge_lora(model).largest_change > 0.0
        same(pair.ours(model), before, 1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("pair", families(lambda case: case.lora), indirect=True)
def test_peft_answers_alike_with_our_adapter(pair: Pair, tmp_path: Path) -> None:
    model, config = adapted(pair)
    save_adapter(model, tmp_path / "adapter", config, base="base")
    attention = pair.case.numbers.get("attn_implementation")
    peer = type(pair.peer).from_pretrained(pair.folder, attn_implementation=attention).eval()
    theirs = PeftModel.from_pretrained(peer, tmp_path / "adapter").eval().base_model.model
    compare = pair.case.compare
    with torch.no_grad():
        ours = pair.ours(model)
    same(ours, compare.theirs(pair.case, theirs, compare.rows(pair.case), "right"), pair.case.atol)  # pyright: ignore[reportArgumentType]


def test_in_8_bits_it_is_close_and_saves_as_it_is(pair: Pair, tmp_path: Path) -> None:
    model, plain = pair.load(scheme="int8"), pair.load()
    ours, exact = pair.ours(model), pair.ours(plain)
    error = torch.cat([(a - b).flatten() for a, b in zip(ours, exact, strict=True)]).norm()
    assert error < 0.1 * torch.cat([b.flatten() for b in exact]).norm()
    save_model(model, tmp_path / "int8")
    same(pair.ours(load_model(tmp_path / "int8", precision="fp32")), ours)
    plugins.load("compress.methods", "int8").apply(plain, [])
    same(pair.ours(plain), ours)


# ---- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", families(lambda case: case.writes and not case.by_length), indirect=True)
def test_written_token_by_token_it_says_what_it_says_at_once(pair: Pair) -> None:
    assert isinstance(pair.case.compare, Tokens)
    model = pair.load()
    same(pair.case.compare.stepped(model, pair.case.compare.rows(pair.case)), pair.ours(model), 1e-4)
