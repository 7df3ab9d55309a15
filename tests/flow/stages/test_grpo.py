"""A recipe that learns from rules: what it needs, and that it is told early."""

from pathlib import Path

import pytest

from danlu.core.errors import ConfigError

from .opinions import make

pytestmark = pytest.mark.usefixtures("one_thread")

STAGE = """
  - name: policy
    use: grpo
    inputs: {model: base, data: rows}
    steps: 2
    max_answer_tokens: 4
    precision: fp32
"""


def test_rules_make_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    made = make(tmp_path, tiny_folder, STAGE + "    rewards: [{regex: {pattern: a}}]\n")["policy"]
    assert made.manifest.kind == "adapter"
    assert 0 <= made.manifest.metrics["last_reward"] <= 1
    assert {"adapter_config.json", "log.jsonl"} <= set(made.manifest.files)


def test_without_rules_or_a_scorer_it_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards is empty and there is no scorer\. Name a rule such as exact"):
        make(tmp_path, tiny_folder, STAGE)
