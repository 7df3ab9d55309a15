"""What every recurrent layer promises: however the tokens of a row are cut into passes, the result is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.models.attend import PackedAttend
from danlu.models.attention import Places
from danlu.models.block import LayerConfig, MixerConfig, StackConfig
from danlu.models.norms import NormConfig
from danlu.models.paged import PagedAttend, PagedCache, Segment

WIDTH = 12
LENGTHS = (5, 1, 23, 11)
NOWHERE = Places(torch.zeros(0), {})
"""Recurrent layers do not ask where tokens stand."""


@pytest.mark.usefixtures("one_thread")
class RecurrentLayer:
    """Inherit it and give ``config``."""

    @pytest.fixture
    def config(self) -> Any:
        """A small layer of this kind."""
        raise NotImplementedError

    @pytest.fixture
    def layer(self, config: MixerConfig) -> torch.nn.Module:
        torch.manual_seed(0)
        return config.make(WIDTH, NormConfig(), 0)

    @pytest.fixture
    def rows(self) -> list[Tensor]:
        return [torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]

    def test_packed_rows_do_not_see_each_other(self, layer: torch.nn.Module, rows: list[Tensor]) -> None:
        together = packed(layer, rows)
        for row, result in zip(rows, together, strict=True):
            torch.testing.assert_close(result, packed(layer, [row])[0])

    def test_no_token_sees_what_follows(self, layer: torch.nn.Module, rows: list[Tensor]) -> None:
        (whole,) = packed(layer, [rows[2]])
        (first,) = packed(layer, [rows[2][:9]])
        torch.testing.assert_close(whole[:9], first)

    def test_what_is_remembered_of_padded_rows_is_that_of_each_row_alone(
        self, layer: torch.nn.Module, rows: list[Tensor], config: MixerConfig
    ) -> None:
        together, alone = cache_of(config), cache_of(config)
        prefill(layer, rows, together)
        for row, tokens in enumerate(rows):
            prefill(layer, [tokens], alone, first=row)
        for name in config.state_shapes:
            torch.testing.assert_close(together.states[0][name], alone.states[0][name])

    def test_reading_a_start_and_then_token_by_token_equals_one_pass(
        self, layer: torch.nn.Module, rows: list[Tensor], config: MixerConfig
    ) -> None:
        cache = cache_of(config)
        more = torch.randn(4, 6, WIDTH)
        prefill(layer, rows, cache)
        written = torch.stack([decode(layer, more[:, [token]], cache)[:, 0] for token in range(6)], dim=1)
        whole = packed(layer, [torch.cat([row, new]) for row, new in zip(rows, more, strict=True)])
        torch.testing.assert_close(written, torch.stack([row[-6:] for row in whole]))

    def test_several_tokens_after_a_start_equal_one_pass(
        self, layer: torch.nn.Module, rows: list[Tensor], config: MixerConfig
    ) -> None:
        cache = cache_of(config)
        more = torch.randn(4, 9, WIDTH)
        prefill(layer, rows, cache)
        written = torch.cat([decode(layer, part, cache) for part in more.split([5, 3, 1], dim=1)], dim=1)
        whole = packed(layer, [torch.cat([row, new]) for row, new in zip(rows, more, strict=True)])
        torch.testing.assert_close(written, torch.stack([row[-9:] for row in whole]))

    def test_rows_that_share_their_start_equal_rows_alone(self, layer: torch.nn.Module, rows: list[Tensor]) -> None:
        start = torch.randn(8, WIDTH)
        x = torch.cat([start, *rows])
        with torch.no_grad():
            y = layer(x, NOWHERE, PackedAttend(LENGTHS, shared=8))
        expected = packed(layer, [torch.cat([start, row]) for row in rows])
        torch.testing.assert_close(y[:8], expected[0][:8])
        torch.testing.assert_close(list(y[8:].split(LENGTHS)), [row[8:] for row in expected])

    def test_the_size_of_chunks_changes_nothing(self, rows: list[Tensor], config: Any) -> None:
        torch.manual_seed(0)
        first = config.make(WIDTH, NormConfig(), 0)
        second = replace(config, chunk=64).make(WIDTH, NormConfig(), 0)
        second.load_state_dict(first.state_dict())
        torch.testing.assert_close(packed(first, rows), packed(second, rows))

    def test_gradients_equal_those_of_token_by_token(self, config: MixerConfig) -> None:
        torch.manual_seed(0)
        layer = config.make(WIDTH, NormConfig(), 0).double()
        x = torch.randn(10, WIDTH, dtype=torch.float64, requires_grad=True)
        wanted = [x, *layer.parameters()]
        pull = torch.randn(10, WIDTH, dtype=torch.float64)
        whole = layer(x, NOWHERE, PackedAttend([10]))
        memory = Remember()
        steps = torch.cat([layer(token, NOWHERE, memory) for token in x.split(1)])
        torch.testing.assert_close(whole, steps)
        ours, theirs = (torch.autograd.grad((y * pull).sum(), wanted) for y in (whole, steps))
        torch.testing.assert_close(ours, theirs)
        assert all(gradient.abs().sum() > 0 for gradient in ours)

    def test_in_bf16_states_stay_fp32_and_results_near(
        self, layer: torch.nn.Module, rows: list[Tensor], config: MixerConfig
    ) -> None:
        expected = packed(layer, rows)
        cache = cache_of(config)
        results = prefill(layer.bfloat16(), [row.bfloat16() for row in rows], cache)
        assert all(result.dtype == torch.bfloat16 for result in results)
        assert all(state.dtype == torch.float32 for state in cache.states[0].values())
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result.float(), wanted, atol=0.05, rtol=0.05)


class Remember(PackedAttend):
    """One row, a token a pass; states keep their gradients, which those of a cache do not."""

    def __init__(self) -> None:
        super().__init__([1])
        self._kept: Any = None

    def state(self, layer: int) -> Any:
        return self._kept

    def keep(self, layer: int, state: Any) -> None:
        self._kept = state


def cache_of(config: MixerConfig) -> PagedCache:
    stack = StackConfig(width=WIDTH, layers=(LayerConfig(mixer=config),), norm=NormConfig(), context_length=64)
    return PagedCache(stack, 0, torch.float32, num_slots=len(LENGTHS))


@torch.no_grad()
def packed(layer: torch.nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """One pass, nothing kept."""
    lengths = [len(row) for row in rows]
    return list(layer(torch.cat(list(rows)), NOWHERE, PackedAttend(lengths)).split(lengths))


@torch.no_grad()
def prefill(layer: torch.nn.Module, rows: Sequence[Tensor], cache: PagedCache, first: int = 0) -> list[Tensor]:
    """One pass that fills rows first… of a cache."""
    lengths = [len(row) for row in rows]
    segments = [Segment((0,), 0, length, slot) for slot, length in enumerate(lengths, start=first)]
    return list(layer(torch.cat(list(rows)), NOWHERE, PagedAttend(cache, segments)).split(lengths))


@torch.no_grad()
def decode(layer: torch.nn.Module, new: Tensor, cache: PagedCache) -> Tensor:
    """New tokens of every row of a cache: (B, T, D) → (B, T, D)."""
    segments = [Segment((0,), 40, new.shape[1], slot) for slot in range(len(new))]
    return layer(new.flatten(0, 1), NOWHERE, PagedAttend(cache, segments)).view_as(new)
