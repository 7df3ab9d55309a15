"""A recipe from compared answers to a reward model, and from it to a policy."""

from pathlib import Path

import pytest

from danlu.core.errors import ConfigError
from danlu.flow.stages.reward import plugin
from danlu.models.load import load_model
from danlu.train.lora import LoraConfig
from danlu.train.rewards import Scorer
from danlu.train.stages.reward import RewardModelConfig

from .opinions import make

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = """
  - name: judge
    use: reward
    inputs: {model: base, data: rows}
    epochs: 6
    max_row_tokens: 80
    precision: fp32
    optim: {learning_rate: 1.0e-2}
  - name: policy
    use: grpo
    inputs: {model: base, data: rows, scorer: judge}
    steps: 2
    max_answer_tokens: 4
    precision: fp32
    rewards: [{length: {characters: 20}, weight: 0.1}]
"""


def test_compared_answers_make_a_reward_model_that_a_policy_learns_from(tiny_folder: Path, tmp_path: Path) -> None:
    made = make(tmp_path, tiny_folder, STAGES)
    judge, policy = made["judge"], made["policy"]
    assert judge.manifest.kind == "model"
    assert judge.manifest.metrics["validation"]["validation_rewards/accuracy"] == 1.0
    scorer = Scorer(load_model(judge.path, precision="fp32"))
    liked, other = scorer([{"prompt": "navy dress"}] * 2, ["cotton is what it is.", "A navy dress."])
    assert liked is not None
    assert other is not None
    assert liked > other
    assert policy.manifest.metrics["steps"] == 2
    lines = (policy.path / "log.jsonl").read_text()
    assert '"rewards/scorer"' in lines
    assert '"rewards/length"' in lines


def test_a_reward_model_on_8_bit_weights_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"int8_base is true\. A reward model is saved merged; use the plain base"):
        plugin.check(RewardModelConfig(int8_base=True, lora=LoraConfig()))
