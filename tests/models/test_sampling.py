import pytest
import torch
from transformers.generation import logits_process as theirs

from danlu.core.records import GenerateOptions
from danlu.models.sampling import likely, logprob_of, pick_tokens
from danlu.models.writing import Writing

LOGITS = [2.0, 1.9, 1.0, 0.0, -9.0]


def draws(logits: list[float], **options: object) -> set[int]:
    """Tokens that 300 draws give."""
    row = torch.tensor([logits])
    found: set[int] = set()
    for seed in range(300):
        writing = Writing([1], GenerateOptions(seed=seed, **options), None, 10)  # type: ignore[arg-type]
        found.add(pick_tokens(row, [writing])[0])
    return found


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draws(LOGITS, temperature=0.0) == {0}


def test_filters_leave_the_unlikely_out() -> None:
    assert draws(LOGITS, temperature=1.0) == {0, 1, 2, 3}
    assert draws(LOGITS, temperature=1.0, top_k=2) == {0, 1}
    assert draws(LOGITS, temperature=1.0, top_p=0.5) == {0, 1}
    assert draws(LOGITS, temperature=1.0, top_p=0.01) == {0}
    assert draws(LOGITS, temperature=1.0, min_p=0.3) == {0, 1, 2}
    assert draws(LOGITS, temperature=0.005) == {0}


def test_samples_follow_the_models_own_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    counts = torch.zeros(3)
    for seed in range(3000):
        writing = Writing([1], GenerateOptions(seed=seed, temperature=1.0), None, 10)
        counts[pick_tokens(logits, [writing])[0]] += 1
    expected = torch.softmax(logits[0], dim=0) * 3000
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi squared, 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 1.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_filters_are_those_of_transformers(options: dict[str, float], seed: int) -> None:
    logits = 3.0 * torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
    warpers = theirs.LogitsProcessorList([theirs.TemperatureLogitsWarper(options["temperature"])])
    if "top_k" in options:
        warpers.append(theirs.TopKLogitsWarper(int(options["top_k"])))
    if "top_p" in options:
        warpers.append(theirs.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        warpers.append(theirs.MinPLogitsWarper(options["min_p"]))
    expected = warpers(torch.tensor([[1]]), logits.clone())[0]  # pyright: ignore[reportArgumentType]
    assert torch.equal(likely(logits[0], GenerateOptions(**options)), expected)  # type: ignore[arg-type]


def test_log_probabilities_are_the_models_own_whatever_steers_the_choice() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    options = GenerateOptions(logprobs=2, logit_bias={3: -100.0}, repetition_penalty=2.0)
    writing = Writing([2], options, None, 10)
    (token,) = pick_tokens(logits, [writing])
    exact = torch.log_softmax(logits[0], dim=0)
    assert token == 1, "3 is forbidden and 2 is halved"
    (found,) = writing.logprobs
    assert (found.token_id, found.logprob) == (1, pytest.approx(float(exact[1])))
    assert [index for index, _ in found.top] == [3, 2]
    assert [value for _, value in found.top] == pytest.approx([float(exact[3]), float(exact[2])])
    assert logprob_of(logits[0], 0, 0).top == ()


def test_plain_rows_beside_others_take_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]])
    plain = Writing([1], GenerateOptions(), None, 10)
    biased = Writing([1], GenerateOptions(logit_bias={2: -100.0}), None, 10)
    assert plain.is_plain
    assert not biased.is_plain
    assert pick_tokens(logits, [plain, biased]) == [2, 1]
