import pytest
import torch
from torch import nn

from danlu.core.errors import TrainError
from danlu.train.average import WeightAverage


def made(decay: float = 0.9) -> tuple[nn.Parameter, WeightAverage]:
    parameter = nn.Parameter(torch.tensor([5.0, -5.0]))
    return parameter, WeightAverage({"w": parameter}, decay)


def moved(parameter: nn.Parameter, values: list[float]) -> None:
    parameter.data.copy_(torch.tensor(values))


def test_the_average_is_the_bias_corrected_sum() -> None:
    parameter, average = made(0.8)
    weights = [[1.0, 2.0], [3.0, -1.0], [0.5, 7.0], [2.0, 2.0]]
    for values in weights:
        moved(parameter, values)
        average.update()
    shares = [0.8 ** (4 - i) * 0.2 / (1 - 0.8**4) for i in range(1, 5)]
    expected = [sum(s * w[k] for s, w in zip(shares, weights, strict=True)) for k in range(2)]
    assert sum(shares) == pytest.approx(1.0)
    assert average.averages["w"].tolist() == pytest.approx(expected)


def test_averages_are_swapped_in_and_out_even_when_validation_fails() -> None:
    parameter, average = made(0.5)
    average.update()
    moved(parameter, [1.0, 1.0])
    seen: list[list[float]] = []
    with pytest.raises(RuntimeError, match="no"), average.swapped(lambda: seen.append(parameter.tolist())):
        raise RuntimeError("no")
    assert seen == [[5.0, -5.0], [1.0, 1.0]]
    assert average.averages["w"].tolist() == [5.0, -5.0]


def test_a_resumed_average_goes_on_as_if_nothing_had_happened() -> None:
    parameter, average = made()
    for value in (1.0, 2.0):
        moved(parameter, [value, value])
        average.update()
    _, resumed = made()
    resumed.load_state_tensors({name: tensor.clone() for name, tensor in average.state_tensors().items()})
    other = resumed._parameters["w"]
    for one, its in ((parameter, average), (other, resumed)):
        moved(one, [7.0, 7.0])
        its.update()
    torch.testing.assert_close(average.averages, resumed.averages, rtol=0, atol=0)


def test_an_average_of_other_weights_is_refused() -> None:
    _, average = made()
    with pytest.raises(TrainError, match=r"average of weights does not fit this run: 2 missing \(num_updates, w\)"):
        average.load_state_tensors({})
