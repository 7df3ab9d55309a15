"""Prove a recipe's training: killed and resumed it ends the same, and how a batch is split changes no gradient."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import ConfigError
from danlu.flow.probe import FEW, Subject, perform

KILLS = (3, 6)
"""Steps after which the run is killed; checkpoints are written every second step."""
MOST_DIFFERENCE = 1e-4
"""Largest distance of two gradients over their length, in fp32, that rounding explains."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One thing that was tried."""

    name: str
    """What must hold."""
    holds: bool
    found: str
    """What was seen."""


def check(subject: Subject) -> Iterator[Proof]:
    """Every proof, as it is done. Steps are few, the recipe's data and model are its own."""
    with tempfile.TemporaryDirectory() as scratch:
        yield _resumes(subject, Path(scratch))
        yield from check_splits(subject, Path(scratch))


def _resumes(subject: Subject, scratch: Path) -> Proof:
    changes = {"save_every": 2, "validate_every": 1_000_000}
    answer = scratch / "answer.json"
    whole = perform(subject.probe(scratch / "whole", answer, changes=changes))
    if whole["num_steps"] < FEW:
        raise ConfigError(
            f"'{subject.stage.name}' has {whole['num_steps']} steps, and the check kills it after steps "
            f"{KILLS[0]} and {KILLS[1]} of {FEW}.",
            f"Give it more, for example {subject.stage.name}.steps={FEW}.",
        )
    for kill in KILLS:
        perform(subject.probe(scratch / "cut", answer, changes=changes, kill_after=kill), dies=True)
    cut = perform(subject.probe(scratch / "cut", answer, changes=changes))
    pairs = list(zip(whole["losses"], cut["losses"], strict=False))
    differ = [step for step, (one, other) in enumerate(pairs, start=1) if one != other]
    same = not differ and len(whole["losses"]) == len(cut["losses"]) > 0
    found = f"{len(pairs)} losses, the last {whole['losses'][-1]:.6f} and {cut['losses'][-1]:.6f}"
    return Proof(
        name=f"killed after steps {KILLS[0]} and {KILLS[1]} and resumed, it has the losses of a run nobody stopped",
        holds=same,
        found=found if same else f"they differ from step {differ[0] if differ else len(pairs) + 1} on; {found}",
    )


def check_splits(subject: Subject, scratch: Path) -> Iterator[Proof]:
    """The first step's gradient, however its batch is split; in fp32, where rounding hides little."""
    base = scratch / "gradients"
    plain = {"precision": "fp32", "micro_tokens": None}
    perform(subject.probe(scratch / "g0", scratch / "a.json", changes=plain, gradients=str(base)))
    tried = [
        ("every row alone (no packing, most accumulation)", {"micro_tokens": 1}, 1),
        ("micro-batches of 200 tokens", {"micro_tokens": 200}, 1),
        ("two processes", {}, 2),
        ("activations computed again", {"recompute": "full"}, 1),
    ]
    for number, (name, changes, processes) in enumerate(tried, start=1):
        other = scratch / f"gradients{number}"
        probe = subject.probe(
            scratch / f"g{number}", scratch / "a.json", changes={**plain, **changes}, gradients=str(other)
        )
        perform(probe, processes=processes)
        distance = _distance(base, other)
        yield Proof(
            name=f"the gradient is the same with {name}",
            holds=distance <= MOST_DIFFERENCE,
            found=f"relative distance {distance:.1e}",
        )


def _distance(one: Path, other: Path) -> float:
    """‖a - b‖ / ‖a‖ over all tensors of two files."""
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    if a.keys() != b.keys():
        return float("inf")
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    length = sum(float(a[name].double().square().sum()) for name in a)
    return (apart / length) ** 0.5 if length else float("inf")


assert max(KILLS) < FEW
