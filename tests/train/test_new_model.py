"""New models: sizes, weights, and that transformers reads what is saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from danlu.core.errors import ConfigError
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.save import save_model
from danlu.train.initial import InitialConfig
from danlu.train.new_model import NewModelConfig

from .corpus import fresh, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("llama", "qwen3", "gpt2", "bert", "t5", "bart")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_new_model_says_the_same_in_transformers(tmp_path: Path, family: str) -> None:
    model = fresh(family, initial=InitialConfig(spread=0.3))
    save_model(model, tmp_path)
    kinds = {"bert": transformers.AutoModelForMaskedLM}
    kinds |= dict.fromkeys(("t5", "bart"), transformers.AutoModelForSeq2SeqLM)
    kind: Any = kinds.get(family, transformers.AutoModelForCausalLM)
    peer = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, targets = torch.arange(10, 30).view(2, 10), torch.arange(40, 52).view(2, 6)
    extra = {"decoder_input_ids": targets} if family in ("t5", "bart") else {}
    with torch.no_grad():
        theirs = peer(input_ids=ids, **extra).logits
    ours = LoadedModel(load_model(tmp_path, precision="fp32")).logits(ids, targets=targets if extra else None)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights(family: str) -> None:
    torch.manual_seed(77)  # what happened before does not matter, and is not disturbed
    before = torch.get_rng_state()
    one = fresh(family).network.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(78)
    other, third = fresh(family).network.state_dict(), fresh(family, seed=2).network.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in one.items())
    assert all(torch.isfinite(tensor).all() for tensor in one.values())


def test_weights_are_narrow_and_outputs_narrower_with_depth() -> None:
    weights = dict(fresh(layers=8, width=64, heads=4).network.named_parameters())
    assert float(weights["embedding.tokens.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(weights["stack.blocks.3.mixer.inner.qkv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    for output in ("mixer.inner.out", "feedforward.inner.down"):
        found = float(weights[f"stack.blocks.3.{output}.weight"].std())
        assert found == pytest.approx(0.02 / math.sqrt(16), rel=0.1)
    assert weights["stack.norm.weight"].eq(1).all()


def test_outputs_stay_wide_where_sums_are_normed_and_shifts_are_zero() -> None:
    weights = dict(fresh("bert", width=64).network.named_parameters())
    assert float(weights["stack.blocks.1.mixer.inner.out.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert not any(weight.any() for name, weight in weights.items() if name.endswith(".bias"))


def test_zero_outputs_make_every_block_the_identity() -> None:
    network = fresh(initial=InitialConfig(zero_outputs=True)).network
    ids = torch.arange(9)
    with torch.no_grad():
        assert network.stack.norm is not None
        torch.testing.assert_close(network.rows(ids, [9]), network.stack.norm(network.embedding(ids, ids)))


def test_the_vocabulary_has_room_for_spare_ids_and_is_a_multiple() -> None:
    used = tokenizer().vocabulary_size
    assert fresh().config.vocabulary_size == -(-used // 64) * 64
    assert fresh(spare_ids=100, vocabulary_multiple=1).config.vocabulary_size == used + 100


def test_sizes_follow_from_the_width() -> None:
    model = fresh(width=96, heads=3, kv_heads=1, feedforward=None)
    assert (model.theirs["intermediate_size"], model.theirs["head_dim"]) == (256, 32)
    assert fresh("gpt2", feedforward=None).theirs["n_inner"] == 128


def test_keys_of_the_family_may_be_given() -> None:
    assert fresh(keys={"rope_theta": 500.0}).theirs["rope_theta"] == 500.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 0}, r"width is 0\. Use 1 or more\."),
        ({"width": 30}, r"4 heads cannot share a width of 30\. It must be a multiple\."),
        ({"kv_heads": 3}, r"4 heads cannot share 3 kv_heads\. Heads must be a multiple\."),
        ({"family": "bert", "kv_heads": 2}, r"kv_heads is 2, but bert has one for each head\. Leave it out\."),
        ({"family": "bart", "tied": False}, r"tied is false, but bart reads its head from the token table\."),
        ({"dropout": 1.0}, r"dropout is 1\.0\. Use 0 to below 1\."),
        ({"spare_ids": -1}, r"spare_ids is -1\. Use 0 or more\."),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NewModelConfig(**options)


def test_a_spread_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spread is 0\.0\. Use a positive number such as 0\.02\."):
        InitialConfig(spread=0.0)
