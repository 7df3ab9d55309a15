import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from danlu.core.errors import ModelError
from danlu.models.positions import (
    RelativeBias,
    RelativeConfig,
    RopeScaling,
    Rotary,
    RotaryConfig,
    frequencies,
    rotate,
    sinusoids,
)

WIDTH, CONTEXT = 16, 64
SHORT = [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0]
LONG = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0]

KINDS: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "default": (RopeScaling(), {}),
    "linear": (RopeScaling(kind="linear", factor=4.0), {"factor": 4.0}),
    "dynamic": (RopeScaling(kind="dynamic", factor=3.0, original_length=CONTEXT), {"factor": 3.0}),
    "yarn": (
        RopeScaling(kind="yarn", factor=4.0, original_length=16, attention_factor=0.1 * math.log(4.0) + 1.0),
        {"factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "yarn-whole-borders-off": (
        RopeScaling(
            kind="yarn", factor=4.0, original_length=32, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0,
            truncate=False,
        ),
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.3,
            "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False,
        },
    ),
    "llama3": (
        RopeScaling(kind="llama3", factor=8.0, original_length=32, low_factor=1.0, high_factor=4.0),
        {"factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "longrope": (
        RopeScaling(
            kind="longrope", factor=4.0, original_length=16, short_factors=tuple(SHORT), long_factors=tuple(LONG),
            attention_factor=math.sqrt(1.0 + math.log(4.0) / math.log(16.0)),
        ),
        {"factor": 4.0, "original_max_position_embeddings": 16, "short_factor": SHORT, "long_factor": LONG},
    ),
}  # fmt: skip


def theirs(name: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of transformers for a row of this length: (T, R)."""
    numbers = {"rope_type": name, "rope_theta": 10_000.0, **KINDS[name][1]}
    config = LlamaConfig(head_dim=WIDTH, max_position_embeddings=CONTEXT, rope_parameters=numbers)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length).unsqueeze(0))
    return cos[0], sin[0]


@pytest.mark.parametrize("length", [8, 16, 17, 64, 100])
@pytest.mark.parametrize("name", KINDS)
def test_turning_by_every_kind_of_scaling_equals_transformers(name: str, length: int) -> None:
    cos, sin = theirs(name, length)
    q, k = torch.randn(length, 3, WIDTH), torch.randn(length, 2, WIDTH)
    wanted_q, wanted_k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[None], sin[None])
    rotary = Rotary(RotaryConfig(width=WIDTH, scaling=KINDS[name][0]))
    angles = rotary(torch.arange(length), torch.float32, torch.full((length,), length))
    for mine, wanted in ((rotate(q, *angles), wanted_q), (rotate(k, *angles), wanted_k)):
        torch.testing.assert_close(mine, wanted[0].transpose(0, 1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_rows_of_one_batch_are_stretched_each_by_its_own_length(name: str) -> None:
    rotary = Rotary(RotaryConfig(width=WIDTH, scaling=KINDS[name][0]))
    rows = [9, 90, 30]
    places = torch.cat([torch.arange(length) for length in rows])
    lengths = torch.repeat_interleave(torch.tensor(rows), torch.tensor(rows))
    together = rotary(places, torch.float32, lengths)
    for part, length in zip(zip(*(x.split(rows) for x in together), strict=True), rows, strict=True):
        alone = rotary(torch.arange(length), torch.float32, torch.full((length,), length))
        assert all(torch.equal(mine, other) for mine, other in zip(part, alone, strict=True))


def test_only_scalings_that_differ_by_length_ask_for_it() -> None:
    asking = {name for name, (scaling, _) in KINDS.items() if RotaryConfig(width=WIDTH, scaling=scaling).by_length}
    assert asking == {"dynamic", "longrope"}
    same = RopeScaling(kind="longrope", original_length=16, short_factors=tuple(SHORT), long_factors=tuple(SHORT))
    assert not RotaryConfig(width=WIDTH, scaling=same).by_length


def test_without_a_scaling_the_first_channel_turns_one_radian_a_token() -> None:
    turns = frequencies(RotaryConfig(width=4, base=100.0))
    assert turns.tolist() == pytest.approx([1.0, 0.1])


def test_channels_beyond_the_turned_ones_stay() -> None:
    x = torch.randn(5, 2, 12)
    cos, sin = Rotary(RotaryConfig(width=8))(torch.arange(5), torch.float32)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    torch.testing.assert_close(turned[..., :8], rotate(x[..., :8], cos, sin))


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_scores_depend_on_the_distance_alone(first: int, second: int) -> None:
    rotary = Rotary(RotaryConfig(width=8))
    q, k = torch.linspace(-1.0, 1.0, 8).view(1, 1, 8), torch.linspace(2.0, -1.0, 8).view(1, 1, 8)

    def score(place_q: int, place_k: int) -> float:
        at = [rotary(torch.tensor([place]), torch.float32) for place in (place_q, place_k)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert score(first, second) == pytest.approx(score(first + 17, second + 17), abs=5e-3)


def test_angles_are_exact_far_away_whatever_the_number_type() -> None:
    rotary, places = Rotary(RotaryConfig(width=8)), torch.tensor([100_003])
    exact, rounded = rotary(places, torch.float32), rotary(places, torch.bfloat16)
    for mine, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(mine, other.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryConfig(width=7), "Rotary width 7 is odd or too small. It must be an even number, 2 or more"),
        (lambda: RopeScaling(kind="linear", factor=0.0), "The rope scaling factor is 0.0. It must be positive"),
        (lambda: RopeScaling(kind="yarn"), "Rope scaling 'yarn' lacks the length of the original training"),
        (
            lambda: RotaryConfig(
                width=8, scaling=RopeScaling(kind="longrope", original_length=4, short_factors=(1.0,))
            ),
            "Rope scaling 'longrope' has 1 factors. It needs 4 of each",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ModelError) as error:
        make()
    assert message in str(error.value)


# ---- fixed and relative positions ------------------------------------------------------------------------------------


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.arange(50), 6, interleaved=True)
    for place in (0, 1, 49):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert table[place, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(
                [math.sin(angle), math.cos(angle)], abs=1e-5
            )
    halves = sinusoids(torch.arange(50), 6, interleaved=False)
    assert torch.equal(halves, torch.cat([table[:, 0::2], table[:, 1::2]], dim=1))


def test_an_odd_width_has_one_sine_more() -> None:
    assert sinusoids(torch.arange(3), 5, interleaved=True).shape == (3, 5)
    assert sinusoids(torch.arange(3), 5, interleaved=False)[0].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
def test_every_distance_falls_into_the_bucket_of_t5(bidirectional: bool, buckets: int, furthest: int) -> None:
    config = RelativeConfig(num_buckets=buckets, max_distance=furthest, bidirectional=bidirectional)
    bias = RelativeBias(config, num_heads=2)
    torch.nn.init.normal_(bias.weight)
    distances = torch.arange(-300, 301).unsqueeze(0)
    wanted = T5Attention._relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=buckets, max_distance=furthest
    )
    assert torch.equal(bias(distances), torch.nn.functional.embedding(wanted, bias.weight).movedim(-1, -3))
