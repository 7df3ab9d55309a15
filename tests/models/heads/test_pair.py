import torch

from danlu.models.heads.pair import PairHeadConfig

UNITS = torch.eye(3)


def test_softmax_logits_are_cosines_times_the_factor_and_probabilities_sum_to_one() -> None:
    head = PairHeadConfig(kind="softmax").make()
    logits = head(UNITS[:2], UNITS)
    torch.testing.assert_close(logits, UNITS[:2] / 0.07)  # CLIP starts at a temperature of 0.07
    torch.testing.assert_close(head.probabilities(logits).sum(dim=-1), torch.ones(2))


def test_sigmoid_logits_are_shifted_and_each_pair_has_a_probability_of_its_own() -> None:
    head = PairHeadConfig(kind="sigmoid").make()
    logits = head(UNITS, UNITS)
    torch.testing.assert_close(logits, 10.0 * UNITS - 10.0)  # SigLIP starts at a factor of 10 and a bias of -10
    torch.testing.assert_close(head.probabilities(logits).diagonal(), torch.full((3,), 0.5))
