"""The runs of bench/train.py: which systems with which settings, each started as a process of its own and kept.

Knows what a run is given and where its result lies; what the numbers mean is train.py's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from measure import ROOT
from train_peers import LOCK
from train_peers import PYTHON as PEERS_PYTHON

System = Literal["ours", "hf", "litgpt", "score"]

FOLDER = ROOT / ".bench" / "train"
INPUTS = FOLDER / "inputs"
"""What train_data.py makes."""
ROWS_PER_STEP = 8
"""Conversations a step."""
ROW_TOKENS = {"llama-5m": 256, "llama-15m": 512}
CHECKPOINTING = {"lora": "half", "pretrain": "full"}
"""How ours keeps less of the forward pass where that is measured: every second block, or all of them. Of frozen weights
no gradients are taken, so that a forward pass is half of a step; else it is a third."""
BATCH_ROWS = {"llama-5m": 16, "llama-15m": 8}
"""Rows a step of pre-training: 4,096 tokens either way."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to run."""

    only: tuple[str, ...]
    quick: bool
    fresh: bool
    rounds: int
    steps: int | None
    discard: int
    threads: int
    wanted: tuple[str, ...]
    target: float | None
    seeds: int
    probe_steps: int
    is_busy: bool
    """Started with --anyway: what was timed then never stands for an idle machine."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One system with its settings."""

    name: str
    system: System
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: int = 1
    is_candidate: bool = False
    """One of several sets of flags of which only the fastest is measured in full."""

    def result(self, options: Options, round_: int, steps: int | None = None) -> dict[str, Any]:
        """What a finished run found out; runs it when it has not been."""
        settings = {**self.settings, "steps": steps or self.steps, "threads": options.threads}
        settings |= {"is_busy": True} if options.is_busy and self.system != "score" else {}
        key = hashlib.sha256((json.dumps(settings, sort_keys=True) + code_key(self.system)).encode()).hexdigest()[:12]
        out = FOLDER / "jobs" / self.name / ("probe" if round_ < 0 else str(round_)) / key
        if not (out / "result.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            launch(self.name, self.system, settings, out)
        return json.loads((out / "result.json").read_text(encoding="utf-8"))


def launch(name: str, system: System, settings: dict[str, Any], out: Path) -> None:
    """Run a script in a process of its own; ends the program when it fails."""
    python = Path(sys.executable) if system == "ours" else PEERS_PYTHON
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(settings["threads"]), "MKL_NUM_THREADS": str(settings["threads"]),
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(FOLDER / "hf"),
        "CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "inductor"), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    path = out / "settings.json"
    path.write_text(json.dumps({**settings, "out": str(out), "launched": time.monotonic()}), encoding="utf-8")
    with open(out / "output.log", "w", encoding="utf-8") as log:
        command = [str(python), str(ROOT / "bench" / f"train_{system}.py"), str(path)]
        process = subprocess.Popen(command, cwd=out, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
    if status or not (out / "result.json").is_file():
        tail = (out / "output.log").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{name} failed ({status}):\n{tail}\nAll of it is in {out / 'output.log'}.")


def code_key(system: System) -> str:
    """Changes when a finished run no longer stands for the code."""
    bench = ROOT / "bench"
    files = [bench / "train_clock.py", bench / f"train_{system}.py", bench / "train_data.py"]
    files += sorted((ROOT / "src" / "danlu").glob("[mt]*/**/*.py")) if system == "ours" else [LOCK]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---- what is run ---------------------------------------------------------------------------------------------------


def candidates(track: str, options: Options) -> dict[str, list[Run]]:
    """All systems of a track by case, the slowest first."""
    if track == "lora":
        found = {"lora": lora_runs(options)}
    else:
        names = ["llama-5m"] if options.quick else list(ROW_TOKENS)
        found = {f"pretrain_{name.removeprefix('llama-')}": pretrain_runs(name, options) for name in names}
    if options.wanted:
        for case, runs in found.items():
            found[case] = [run for run in runs if any(part in run.name for part in options.wanted)]
    return {case: runs for case, runs in found.items() if runs}


def lora_runs(options: Options) -> list[Run]:
    """Rank 16 on every linear of SmolLM2-135M, eight conversations a step."""
    shared = {
        "track": "lora", "model": str(INPUTS / "base"), "rows": str(INPUTS / "chat.json"), "seed": 0,
        "rows_per_step": ROWS_PER_STEP, "rank": 16, "alpha": 32, "learning_rate": 1e-3, "betas": [0.9, 0.999],
        "weight_decay": 0.0, "clip_norm": 1.0,
    }  # fmt: skip
    steps = options.steps or (10 if options.quick else 40)
    bf16: dict[str, Any] = {"dtype": "bfloat16"}
    flat: dict[str, Any] = {"gradient_checkpointing": False, "padding_free": True, "max_length": None}

    def run(name: str, system: System, is_candidate: bool = False, **settings: Any) -> Run:
        settings = {**shared, **settings}
        return Run(name=f"lora_{name}", system=system, settings=settings, steps=steps, is_candidate=is_candidate)

    found = [
        run("hf_default", "hf"),
        run("hf_bf16", "hf", True, flags={"bf16": True}),
        run("hf_bf16_flat", "hf", True, flags={"bf16": True}, collator="flat", **bf16),
        run("ours_checkpointing", "ours", run={"recompute": CHECKPOINTING["lora"]}),
        run("ours_fp32", "ours", run={"precision": "fp32"}),
        run("ours", "ours"),
    ]
    if not options.quick:
        grouped = {"bf16": True, "train_sampling_strategy": "group_by_length"}
        found[1:1] = [
            run("trl_default", "hf", track="trl"),
            run("trl_flat", "hf", True, track="trl", flags=flat, **bf16),
            run("hf_bf16_grouped", "hf", True, flags=grouped, **bf16),
        ]
    return found


def pretrain_runs(name: str, options: Options) -> list[Run]:
    """A small Llama from given weights, 4,096 tokens a step."""
    case = f"pretrain_{name.removeprefix('llama-')}"
    shared = {
        **pretrain_inputs(name), "rows_per_step": BATCH_ROWS[name], "seed": 0, "learning_rate": 1e-3,
        "betas": [0.9, 0.95], "weight_decay": 0.0, "clip_norm": 1.0,
    }  # fmt: skip
    steps = options.steps or (20 if options.quick else 60 if name == "llama-5m" else 40)
    compiled = {"bf16": True, "torch_compile": True}

    def run(name: str, system: System, is_candidate: bool = False, **settings: Any) -> Run:
        settings = {**shared, **settings}
        return Run(name=f"{case}_{name}", system=system, settings=settings, steps=steps, is_candidate=is_candidate)

    whole = [run("litgpt_whole_batch", "litgpt", micro_batch_size=BATCH_ROWS[name])]
    return [
        run("hf_default", "hf"),
        run("hf_bf16", "hf", True, flags={"bf16": True}),
        run("hf_bf16_compiled", "hf", True, flags=compiled),
        run("litgpt", "litgpt"),
        *([] if options.quick else whole),
        run("ours_checkpointing", "ours", run={"recompute": CHECKPOINTING["pretrain"]}),
        run("ours_fp32", "ours", run={"precision": "fp32"}),
        run("ours", "ours"),
    ]


def pretrain_inputs(name: str) -> dict[str, Any]:
    """Files and shapes of a model's pre-training."""
    return {
        "track": "pretrain", "model": str(INPUTS / name), "tokens": str(INPUTS / "train.bin"),
        "corpus": str(INPUTS / "corpus.json"), "order": f"order-{name}", "row_tokens": ROW_TOKENS[name],
    }  # fmt: skip


RECIPE_MODEL = "llama-5m"
PEER_RATES = (1.5e-3, 3e-3, 6e-3)
"""Learning rates the peer is tried with; its best one goes on."""
NUM_SNAPSHOTS = 12


def peer_recipes() -> dict[str, dict[str, Any]]:
    """HF Trainer at its best flags, compiled and bf16 (see the pretrain track), with each rate."""
    shared = {
        "steps": 300, "rows_per_step": 16, "betas": [0.9, 0.95], "weight_decay": 0.1, "clip_norm": 1.0,
        "schedule": "linear", "warmup_steps": 20, "flags": {"bf16": True, "torch_compile": True},
    }  # fmt: skip
    return {f"hf_{rate:g}": {**shared, "learning_rate": rate} for rate in PEER_RATES}


OUR_RECIPE: dict[str, Any] = {
    "steps": 240, "track": "recipe", "learning_rate": 4e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "clip_norm": 1.0,
    "run": {
        "sequence_length": 256, "tokens_per_step": 4096, "documents": "joined",
        "optim": {"name": "muon", "schedule": "linear", "warmup_steps": 10, "final_share": 0.0},
    },
}  # fmt: skip
"""Free choice of method: ``run`` has keys of PretrainConfig."""


def recipe_run(name: str, settings: dict[str, Any], options: Options, seed: int) -> Run:
    """A recipe with one seed (the order of rows), weights kept on the way, more often near the end."""
    steps = options.steps or settings["steps"]
    shares = (1 - (1 - i / NUM_SNAPSHOTS) ** 1.5 for i in range(1, NUM_SNAPSHOTS + 1))
    kept = sorted({max(1, round(steps * share)) for share in shares})
    values = {
        **pretrain_inputs(RECIPE_MODEL),
        **settings,
        "seed": seed,
        "snapshots": kept,
        "order_seed": seed,
        "shards": str(INPUTS / "shards"),
    }
    return Run(name=f"recipe_{name}", system="ours" if name == "ours" else "hf", settings=values, steps=steps)


def judge(case: str, folders: dict[str, str], options: Options) -> dict[str, dict[str, float]]:
    """The held-out loss of each folder by name."""
    if case == "lora":
        rows = 24
        settings = {"kind": "lora", "model": str(INPUTS / "base"), "rows": str(INPUTS / "chat.json"), "num_rows": rows}
    else:
        name = RECIPE_MODEL if case == "recipe" else case.replace("pretrain_", "llama-")
        settings = {**pretrain_inputs(name), "kind": "pretrain", "tokens": str(INPUTS / "validation.bin")}
        settings["num_rows"] = (131072 if case != "recipe" and not options.quick else 32768) // ROW_TOKENS[name]
    run = Run(name=f"judge_{case}", system="score", settings={**settings, "folders": sorted(set(folders.values()))})
    scores = run.result(options, round_=0)["scores"]
    return {name: scores[folder] for name, folder in folders.items()}


def headline(case: str, facts: dict[str, Any], best: str | None) -> dict[str, float]:
    """Ratios of one case: how many times faster ours is than each peer, and what else the bars ask for."""
    rates = {name.removeprefix(f"{case}_"): fact["median_tokens_per_s"] for name, fact in facts.items()}
    ours = rates.get("ours")
    if ours is None:
        return {}
    found: dict[str, float] = {}
    for name, rate in rates.items():
        if not name.startswith("ours"):
            found[f"{case}_vs_{'hf_best' if f'{case}_{name}' == best else name}"] = ours / rate
    peers = [min(fact["max_rss_bytes"]) for name, fact in facts.items() if "_ours" not in name]
    if peers:
        found[f"{case}_memory_vs_best_peer"] = min(peers) / max(facts[f"{case}_ours"]["max_rss_bytes"])
    if "ours_fp32" in rates:
        found[f"{case}_bf16_vs_fp32"] = ours / rates["ours_fp32"]
    if "ours_checkpointing" in rates:
        plain, forgetful = (facts[f"{case}_{name}"]["activation_bytes"] for name in ("ours", "ours_checkpointing"))
        found[f"{case}_checkpointing_memory"] = 1.0 - statistics.median(forgetful) / statistics.median(plain)
        found[f"{case}_checkpointing_time"] = ours / rates["ours_checkpointing"]
    found[f"{case}_time_to_first_step_s"] = statistics.median(facts[f"{case}_ours"]["time_to_first_step_s"])
    return {name: round(value, 3) for name, value in found.items()}


def over_cases(ratios: dict[str, float]) -> dict[str, float]:
    """What the bars name: the worst of both model sizes, or of all cases."""
    found: dict[str, float] = {}
    for end in ("vs_hf_default", "vs_hf_best", "vs_litgpt", "vs_litgpt_whole_batch"):
        sizes = [value for name, value in ratios.items() if name.startswith("pretrain_") and name.endswith(end)]
        found |= {f"pretrain_{end}": min(sizes)} if sizes else {}
    for end in ("bf16_vs_fp32", "checkpointing_memory", "memory_vs_best_peer"):
        cases = [value for name, value in ratios.items() if name.endswith(end)]
        found |= {end: min(cases)} if cases else {}
    for end in ("checkpointing_time", "time_to_first_step_s"):
        cases = [value for name, value in ratios.items() if name.endswith(end)]
        found |= {end: max(cases)} if cases else {}
    return found
