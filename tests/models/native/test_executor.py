"""The executor in C says what the one in torch says, whatever stands side by side."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model, Precision
from danlu.models.native.executor import NativeExecutor, native_executor
from danlu.models.native.kernels import load_kernels
from danlu.models.native.program import Unsupported
from danlu.models.paged import PagedCache, Segment
from tests.models.families import FAMILIES, families
from tests.models.native.cases import MIXED_STEPS, cache_of, close_to, family, native, needs_kernels, plain, written
from tests.models.peer import save_llama, some_ids

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]

REASONS = {
    "Mamba2 is not written in C": ("mamba2",),
    "DeltaNet is not written in C": ("qwen3-next",),
    "its attention is gated": ("qwen3-next-some-plain",),
    "depend on how long a row is": ("llama-dynamic", "phi3-long"),
}
"""Why torch goes on with a family, and the beginning of its names."""
UNKNOWN = {
    name: reason for reason, starts in REASONS.items() for name in families(lambda case: case.writes)
    if name.startswith(starts)
}  # fmt: skip
KNOWN = [name for name in families(lambda case: case.writes) if name not in UNKNOWN]
KINDS: list[tuple[Precision, str | None, torch.dtype]] = [
    ("fp32", None, torch.float32), ("bf16", None, torch.bfloat16), ("fp32", "int8", torch.bfloat16),
    ("fp32", "int8", torch.int8),
]  # fmt: skip


@pytest.fixture(scope="module")
def long_llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Contexts of several chunks of keys."""
    folder = tmp_path_factory.mktemp("long")
    save_llama(folder, max_position_embeddings=4096, num_attention_heads=4, num_key_value_heads=1, head_dim=24)
    return load_model(folder, precision="fp32")


@pytest.mark.parametrize("name", KNOWN)
def test_every_family_that_is_known_says_what_torch_says(name: str, tmp_path: Path) -> None:
    model, vocabulary = family(name, tmp_path), FAMILIES[name].vocabulary
    close_to(written(native(model), MIXED_STEPS, vocabulary), written(plain(model), MIXED_STEPS, vocabulary))


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_log_says_why_torch_goes_on_with_a_family(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = family(name, tmp_path)
    caplog.set_level(logging.INFO)
    assert native_executor(model, cache_of(model), num_threads=1) is None
    assert "the native kernels are not used for this model: " in caplog.text
    assert UNKNOWN[name] in caplog.text


@pytest.mark.parametrize(("precision", "scheme", "dtype"), KINDS)
def test_a_row_gets_the_same_bits_alone_and_in_any_company(
    precision: Precision, scheme: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = family("qwen3", tmp_path, precision=precision, scheme=scheme)
    together = written(native(model, dtype), [[(0, 25), (1, 3), (2, 9)], [(0, 1), (1, 1), (2, 1)]], 100)
    alone = written(native(model, dtype), [[(0, 25)], [(0, 1)]], 100)
    pieces = written(native(model, dtype), [[(0, 4)], [(0, 13), (2, 1)], [(0, 8)], [(0, 1)]], 100)
    assert torch.equal(together[0][:25], alone[0])
    assert torch.equal(together[1][0], alone[1][0])
    assert torch.equal(torch.cat([pieces[0], pieces[1][:13], pieces[2]]), alone[0])
    assert torch.equal(pieces[3][0], alone[1][0])


@pytest.mark.parametrize(("precision", "scheme", "dtype"), KINDS)
def test_threads_change_no_bit(precision: Precision, scheme: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    model = family("gemma2", tmp_path, precision=precision, scheme=scheme)
    one, *others = (written(native(model, dtype, threads), MIXED_STEPS, 100) for threads in (1, 2, 5))
    for found in others:
        assert all(torch.equal(a, b) for a, b in zip(one, found, strict=True))


def long_rows(executor: NativeExecutor | None, model: Model, pieces: list[int]) -> torch.Tensor:
    """Logits after each piece of one long row, in a shuffled table; torch's where there is no executor."""
    ids = some_ids(sum(pieces))
    if executor is None:
        with torch.inference_mode():
            network = model.network
            ends = torch.tensor(pieces).cumsum(0) - 1
            return network.logits(network.rows(torch.tensor(ids), [len(ids)])[ends])
    table, start, found = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist(), 0, []
    for count in pieces:
        found.append(executor.run(ids[start : start + count], [Segment(table, start, count)], [count - 1]).clone())
        start += count
    return torch.cat(found)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_long_row_is_split_over_threads_and_says_the_same(long_llama: Model, num_threads: int) -> None:
    kernels = load_kernels()
    assert kernels is not None
    pieces = [1300, 1, 1, 700, 1, 5]
    cache = PagedCache(long_llama.config.stack, 40, torch.float32)
    executor = NativeExecutor(kernels, long_llama, cache, num_threads)
    found, expected = long_rows(executor, long_llama, pieces), long_rows(None, long_llama, pieces)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    single = NativeExecutor(kernels, long_llama, PagedCache(long_llama.config.stack, 40, torch.float32), 1)
    assert torch.equal(found, long_rows(single, long_llama, pieces))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_lies_in_unwritten_places_of_a_page_is_not_read(dtype: torch.dtype, tmp_path: Path) -> None:
    model = family("llama", tmp_path)
    executor, clean = native(model, dtype), native(model, dtype)
    cache = executor.cache
    for pool in (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales):
        pool.fill_(float("nan") if pool.is_floating_point() else 100)
    for ours, theirs in zip(written(executor, MIXED_STEPS, 100), written(clean, MIXED_STEPS, 100), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mistral-window", "bart", "t5"])
def test_pages_of_8_bits_are_filled_and_read_as_torch_does(name: str, tmp_path: Path) -> None:
    model, vocabulary = family(name, tmp_path), FAMILIES[name].vocabulary
    ours, theirs = native(model, torch.int8), plain(model, torch.int8)
    found, expected = written(ours, MIXED_STEPS, vocabulary), written(theirs, MIXED_STEPS, vocabulary)
    close_to(found, expected, atol=2e-2)  # where a number lies between two steps, its last bit decides
    for kind in ("keys", "values", "memory_keys", "memory_values"):
        for pool, other in zip(getattr(ours.cache, kind), getattr(theirs.cache, kind), strict=True):
            apart = (pool.int() - other.int()).abs()
            assert not apart.numel() or (apart.max() <= 1 and (apart > 0).float().mean() < 1e-3)
    for kind in ("key_scales", "value_scales", "memory_key_scales", "memory_value_scales"):
        for pool, other in zip(getattr(ours.cache, kind), getattr(theirs.cache, kind), strict=True):
            torch.testing.assert_close(pool, other, atol=1e-6, rtol=1e-4)
    exact = written(plain(model), MIXED_STEPS, vocabulary)
    assert max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)) < 0.1


def test_pages_are_filled_as_torch_fills_them(tmp_path: Path) -> None:
    model = family("qwen3", tmp_path)
    ours, theirs = native(model), plain(model)
    written(ours, MIXED_STEPS, 100)
    written(theirs, MIXED_STEPS, 100)
    for pool, expected in zip(
        (*ours.cache.keys, *ours.cache.values), (*theirs.cache.keys, *theirs.cache.values), strict=True
    ):
        torch.testing.assert_close(pool, expected, atol=1e-5, rtol=1e-4)


def test_hidden_states_and_their_logits_are_those_of_one_pass(tmp_path: Path) -> None:
    model = family("gemma3", tmp_path)
    executor, ids, segments = native(model), some_ids(9, vocabulary=100), [Segment([3], 0, 9)]
    whole = executor.run(ids, segments, [8, 2]).clone()
    hidden = executor.hidden(ids, segments, [8, 2])
    assert hidden.shape == (2, model.config.width)
    assert torch.equal(executor.logits(hidden), whole)
    torch.testing.assert_close(hidden, plain(model).hidden(ids, segments, [8, 2]), atol=1e-4, rtol=1e-4)


def test_a_pass_may_ask_for_nothing(tmp_path: Path) -> None:
    model = family("llama", tmp_path)
    executor = native(model)
    assert executor.run([1, 2, 3], [Segment([0], 0, 3)], []).shape == (0, 100)
    found = executor.run([4], [Segment([0], 3, 1)], [0])
    expected = plain(model).run([1, 2, 3, 4], [Segment([0], 0, 4)], [3])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("segments", "outs", "complaint"),
    [
        ([Segment([24], 0, 2)], [0], "pages are 0 to 23"),
        ([Segment([-1], 0, 2)], [0], "pages are 0 to 23"),
        ([Segment([3], 63, 2)], [0], "1 pages cannot hold 65 tokens"),
        ([Segment([3], 0, 2)], [2], "outs are numbers of new tokens"),
        ([Segment([3], 0, 2), Segment([4], 0, 0)], [0], "a row needs a new token"),
        ([Segment([3], -1, 2)], [0], "a row starts at 0 or later"),
    ],
)
def test_what_would_reach_beyond_memory_is_stopped(
    segments: list[Segment], outs: list[int], complaint: str, tmp_path: Path
) -> None:
    executor = native(family("llama-biased", tmp_path))
    with pytest.raises((AssertionError, IndexError), match=f"{complaint}|index out of range"):
        executor.run([1, 2], segments, outs)


def test_pages_of_a_type_that_is_not_known_are_refused(tmp_path: Path) -> None:
    kernels, model = load_kernels(), family("llama", tmp_path)
    assert kernels is not None
    with pytest.raises(Unsupported, match=r"its pages hold torch\.float16 on cpu"):
        NativeExecutor(kernels, model, cache_of(model, torch.float16), 1)


@pytest.mark.model
def test_pages_of_8_bits_change_next_to_nothing_of_real_weights(smollm2: LoadedModel, smollm2_gguf: Path) -> None:
    ids = smollm2.model.chat.tokenizer.encode(Path("README.md").read_text(encoding="utf-8"))[:200]
    outs, segments = list(range(len(ids))), [Segment([1, 3, 0, 2], 0, len(ids))]
    model, kernels = load_model(smollm2_gguf, precision="bf16"), load_kernels()
    assert kernels is not None
    exact, found = (
        NativeExecutor(kernels, model, PagedCache(model.config.stack, 4, dtype), 1)
        .run(ids, segments, outs).log_softmax(-1)
        for dtype in (torch.bfloat16, torch.int8)
    )  # fmt: skip
    assert (exact.exp() * (exact - found)).sum(-1).mean() < 5e-3


@pytest.mark.model
@pytest.mark.parametrize(("scheme", "most_nats"), [(None, 1e-3), ("int8", 3e-2)])
def test_of_real_weights_it_says_what_fp32_says(
    smollm2: LoadedModel, smollm2_gguf: Path, scheme: str | None, most_nats: float
) -> None:
    text = "The quick brown fox jumps over the lazy dog. Water boils at a hundred degrees Celsius at sea level, and"
    ids = smollm2.model.chat.tokenizer.encode(text)
    outs, segments = list(range(len(ids))), [Segment([1], 0, len(ids))]
    model = load_model(smollm2_gguf, precision="bf16", scheme=scheme)
    kernels = load_kernels()
    assert kernels is not None
    with torch.inference_mode():
        exact = smollm2.model.network.logits(smollm2.model.network.rows(torch.tensor(ids), [len(ids)]))
        executor = NativeExecutor(kernels, model, PagedCache(model.config.stack, 2, torch.bfloat16), 1)
        found = executor.run(ids, segments, outs)
        exact, found = exact.log_softmax(-1), found.log_softmax(-1)
        divergence = (exact.exp() * (exact - found)).sum(-1).mean()
    assert divergence < most_nats
    assert (exact.argmax(-1) == found.argmax(-1)).float().mean() > 0.85
