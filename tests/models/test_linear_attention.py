import pytest
import torch
from torch import Tensor

from danlu.models.linear_attention import chunked, step

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, GROUPS, SHARED, KEY, VALUE = 2, 2, 3, 4, 5
HEADS = GROUPS * SHARED


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """q, k, v, decay, state and rate; keys are unit vectors, as the delta rule wants them."""
    make = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=dtype)

    return {
        "q": normal(ROWS, tokens, GROUPS, KEY),
        "k": torch.nn.functional.normalize(normal(ROWS, tokens, GROUPS, KEY), dim=-1),
        "v": normal(ROWS, tokens, HEADS, VALUE),
        "decay": -normal(ROWS, tokens, HEADS).abs(),
        "state": normal(ROWS, GROUPS, KEY, SHARED * VALUE),
        "rate": torch.sigmoid(normal(ROWS, tokens, HEADS)),
    }


def one_by_one(x: dict[str, Tensor], *, is_delta: bool) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, every head alone."""
    outputs = torch.zeros_like(x["v"])
    states = torch.zeros_like(x["state"])
    for row in range(ROWS):
        for head in range(HEADS):
            group, place = divmod(head, SHARED)
            columns = slice(place * VALUE, (place + 1) * VALUE)
            state = x["state"][row, group, :, columns]
            for token in range(x["v"].shape[1]):
                key, value = x["k"][row, token, group], x["v"][row, token, head]
                state = state * x["decay"][row, token, head].exp()
                if is_delta:
                    value = x["rate"][row, token, head] * (value - key @ state)
                state = state + torch.outer(key, value)
                outputs[row, token, head] = x["q"][row, token, group] @ state
            states[row, group, :, columns] = state
    return outputs, states


def run(x: dict[str, Tensor], *, is_delta: bool, chunk: int) -> tuple[Tensor, Tensor]:
    rate = x["rate"] if is_delta else None
    return chunked(x["q"], x["k"], x["v"], x["decay"], x["state"], chunk=chunk, rate=rate)


def part(x: dict[str, Tensor], tokens: slice, state: Tensor) -> dict[str, Tensor]:
    return {name: value[:, tokens] for name, value in x.items() if name != "state"} | {"state": state}


both = pytest.mark.parametrize("is_delta", [False, True], ids=["sum", "delta"])


@both
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (3, 4), (4, 4), (9, 4), (21, 8), (8, 1)])
def test_reading_in_chunks_equals_reading_one_by_one(is_delta: bool, tokens: int, chunk: int) -> None:
    x = inputs(tokens)
    torch.testing.assert_close(run(x, is_delta=is_delta, chunk=chunk), one_by_one(x, is_delta=is_delta))


@both
def test_gradients_equal_those_of_reading_one_by_one(is_delta: bool) -> None:
    x = {name: value.requires_grad_() for name, value in inputs(11).items()}
    wanted = [value for name, value in x.items() if is_delta or name != "rate"]
    pulls = [torch.randn_like(result) for result in one_by_one(x, is_delta=is_delta)]

    def gradients(results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(list(results), wanted, grad_outputs=pulls)

    ours = gradients(run(x, is_delta=is_delta, chunk=4))
    torch.testing.assert_close(ours, gradients(one_by_one(x, is_delta=is_delta)))


@both
def test_step_by_step_equals_chunks(is_delta: bool) -> None:
    x = inputs(7)
    state, outputs = x["state"], []
    for token in range(7):
        at = {name: value[:, token] for name, value in x.items() if name != "state"}
        rate = at["rate"] if is_delta else None
        y, state = step(at["q"], at["k"], at["v"], at["decay"], state, rate=rate)
        outputs.append(y)
    torch.testing.assert_close((torch.stack(outputs, dim=1), state), run(x, is_delta=is_delta, chunk=3))


@both
def test_a_row_read_in_two_passes_equals_one(is_delta: bool) -> None:
    x = inputs(13)
    whole, end = run(x, is_delta=is_delta, chunk=4)
    first, state = run(part(x, slice(0, 6), x["state"]), is_delta=is_delta, chunk=4)
    second, state = run(part(x, slice(6, 13), state), is_delta=is_delta, chunk=4)
    torch.testing.assert_close((torch.cat([first, second], dim=1), state), (whole, end))


@both
def test_tokens_that_write_and_fade_nothing_leave_the_state_alone(is_delta: bool) -> None:
    x = inputs(10)
    for name in ("v", "decay", "rate"):
        x[name][:, 6:] = 0.0
    _, whole = run(x, is_delta=is_delta, chunk=4)
    _, short = run(part(x, slice(0, 6), x["state"]), is_delta=is_delta, chunk=4)
    torch.testing.assert_close(whole, short)


@both
def test_a_state_that_is_forgotten_at_once_gives_finite_results_and_gradients(is_delta: bool) -> None:
    x = inputs(40, torch.float32)
    x["decay"] = x["decay"] * 1e4
    wanted = {name: value.requires_grad_() for name, value in x.items() if is_delta or name != "rate"}
    y, state = run(x, is_delta=is_delta, chunk=16)
    gradients = torch.autograd.grad(y.sum() + state.sum(), list(wanted.values()))
    assert all(result.isfinite().all() for result in (y, state, *gradients))
