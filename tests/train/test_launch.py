"""`launch` starts processes, starts them again, and says which one failed first."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from danlu.core.errors import ConfigError
from danlu.train.launch import launch

ROOT = Path(__file__).resolve().parents[2]
STARTER = """
import sys
from pathlib import Path
from danlu.core.errors import DanluError
from danlu.train.launch import launch
command = [sys.executable, "-m", "tests.train.rank_work", *sys.argv[3:]]
try:
    launch(2, command, logs=Path(sys.argv[1]), max_restarts=int(sys.argv[2]))
except DanluError as error:
    sys.exit(f"launcher: {error}")
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(tmp_path: Path, max_restarts: int, fault: str) -> subprocess.Popen[str]:
    """Two processes that count to eight with checkpoints."""
    arguments = [str(tmp_path / "logs"), str(max_restarts), "count_up", str(tmp_path / "work"), fault]
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_less_than_one_process_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nproc is 0\. Use 1 or more, such as the number of GPUs\."):
        launch(0, ["true"], logs=tmp_path)


def test_after_a_process_was_killed_all_go_on_from_the_last_checkpoint(tmp_path: Path):
    process = start(tmp_path, 1, "killed")
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1]) == {"started": 3, "total": 24.0}


def test_without_restarts_the_launcher_says_who_was_killed(tmp_path: Path):
    process = start(tmp_path, 0, "killed")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "launcher: Process 1 of 2 ended with signal SIGKILL: it wrote nothing." in errors
    assert "Processes are killed so when memory runs out." in errors


def test_ctrl_c_reaches_every_process(tmp_path: Path):
    process = start(tmp_path, 0, "sleeps")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("work/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (words,) = tmp_path.glob("logs/*/attempt_0/1/stderr.log")
    assert "KeyboardInterrupt" in words.read_text()


def torchrun_options(script: str) -> argparse.Namespace:
    """What torchrun makes of the command in a script; fails on options it does not know."""
    words = shlex.split(script.replace("\\\n", " "), comments=True)
    start = next(i for i, word in enumerate(words) if word.endswith("torchrun"))
    return get_args_parser().parse_args(words[start + 1 :])


def test_the_slurm_example_is_a_script_that_torchrun_understands():
    path = ROOT / "examples" / "cluster" / "slurm.sh"
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    options = torchrun_options(path.read_text())
    assert (options.rdzv_backend, options.max_restarts, options.no_python) == ("c10d", 3, True)
    assert options.training_script_args[:1] == ["train"]


def test_the_kubernetes_example_is_yaml_that_torchrun_understands():
    service, job = yaml.safe_load_all((ROOT / "examples" / "cluster" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    options = torchrun_options(pod["containers"][0]["args"][0].replace("$((JOB_COMPLETION_INDEX == 0))", "1"))
    assert int(options.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert options.rdzv_endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert pod["subdomain"] == service["metadata"]["name"]
