"""Training head-to-head: ours against HF Trainer with PEFT, TRL and litgpt, each as it comes and at its best flags.

    make bench-train                                    (ARGS=--quick for minutes instead of hours)
    make bench-train ARGS="--only lora,pretrain"        tracks: lora, pretrain, recipe

Every run is a process of its own with two threads; ours and theirs take turns, round after round. All get the same
weights, ids, rows, order, optimiser, rate and clipping; an outer clock stamps each step (train_clock.py), and one judge
computes the held-out loss of what each of them saved (train_score.py). Finished runs are kept under .bench/train/jobs:
the same command goes on after an interruption, and --fresh forgets them. Writes bench/results/train.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

from measure import RESULTS, ROOT, refuse_when_busy, write_result
from train_jobs import (
    FOLDER,
    OUR_RECIPE,
    Options,
    candidates,
    headline,
    judge,
    over_cases,
    peer_recipes,
    recipe_run,
)
from train_peers import set_up, versions

TRACKS = ("lora", "pretrain", "recipe")
SAME_LOSS = 0.03
"""A system whose held-out loss is this many nats above the fp32 reference has not done the same work."""
SAME_START = 1e-4
"""Most that two systems' first losses may differ in fp32."""


def main() -> int:
    options = read_options()
    load = refuse_when_busy()
    set_up()
    subprocess.run([sys.executable, str(ROOT / "bench" / "train_data.py")], check=True)
    if options.fresh:
        for name in ("jobs", "inductor"):  # what was compiled goes too: the first round starts cold
            shutil.rmtree(FOLDER / name, ignore_errors=True)
    runs: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for track in options.only:
        found = recipe(options) if track == "recipe" else systems(track, options)
        runs |= found[0]
        ratios |= found[1]
    ratios |= over_cases(ratios)
    for name, ratio in ratios.items():
        print(f"{name:<28} {ratio:6.2f}")
    if not (options.quick or options.wanted):  # with --anyway too: the load before is part of the result
        plain = json.loads(json.dumps(runs, default=str).replace(f"{ROOT}/", ""))  # settings name paths
        for case in plain.values():
            case["load_before"] = round(load, 2)
        runs, ratios = with_earlier(plain, ratios)
        print(write_result("train", load, {"peers": versions(), **runs}, ratios | over_cases(ratios), ()))
    else:
        path = FOLDER / "partial.json"
        path.write_text(json.dumps({"ratios": ratios, "runs": runs}, indent=2, default=str), encoding="utf-8")
        print(path)
    return 0


def with_earlier(runs: dict[str, Any], ratios: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
    """These and, of cases that were not run now, what the result file tells."""
    path = RESULTS / "train.json"
    if not path.is_file():
        return runs, ratios
    earlier = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: run for name, run in earlier["runs"].items() if name != "peers" and name not in runs}
    told = {name: ratio for name, ratio in earlier["ratios"].items() if name.startswith(tuple(map(_ratio_of, kept)))}
    return kept | runs, told | ratios


def _ratio_of(case: str) -> str:
    return "time_to_bpb" if case == "recipe" else f"{case}_"


def systems(track: str, options: Options) -> tuple[dict[str, Any], dict[str, float]]:
    """The same work in every system; candidates for the best flags are tried once, the fastest goes on."""
    runs: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for case, tried in candidates(track, options).items():
        probes = [run for run in tried if run.is_candidate]
        rates = {run.name: rate(run.result(options, round_=-1, steps=options.probe_steps), options) for run in probes}
        best = max(rates, key=lambda name: rates[name]) if rates else None
        chosen = [run for run in tried if not run.is_candidate or run.name == best]
        measured = {run.name: list[dict[str, Any]]() for run in chosen}
        for number in range(options.rounds):
            for run in chosen if number % 2 == 0 else chosen[::-1]:
                measured[run.name].append(run.result(options, round_=number))
                print(line(run.name, measured[run.name][-1], options), flush=True)
        scores = judge(case, {name: results[0]["saved"] for name, results in measured.items()}, options)
        facts = {name: summary(results, scores[name], options) for name, results in measured.items()}
        compare_losses(case, facts)
        runs[case] = {"probed_tokens_per_s": rates, "best_flags": best, "systems": facts}
        ratios |= headline(case, facts, best)
    return runs, ratios


def compare_losses(case: str, facts: dict[str, Any]) -> None:
    """The same start in fp32, or nothing is comparable; a run that ends above the fp32 reference is marked void."""
    plain = [fact for name, fact in facts.items() if name.endswith(("hf_default", "ours_fp32"))]
    starts = [fact["first_loss"] for fact in plain]
    if starts and max(starts) - min(starts) > SAME_START:
        raise SystemExit(f"{case}: first losses differ in fp32: {starts}.")
    references = [fact["held_out"]["loss"] for fact in plain]
    for name, fact in facts.items():
        fact["is_void"] = bool(references) and fact["held_out"]["loss"] > min(references) + SAME_LOSS
        print(f"{name:<32} held-out loss {fact['held_out']['loss']:.4f}{'  VOID' if fact['is_void'] else ''}")


def rate(result: dict[str, Any], options: Options, of: str = "tokens") -> float:
    """Tokens a second from the end of the last step that is left out to the end of the last one."""
    skip = min(options.discard, len(result["stamps_s"]) - 1)
    return sum(result[of][skip:]) / (result["stamps_s"][-1] - result["stamps_s"][skip - 1])


def summary(results: list[dict[str, Any]], score: dict[str, float], options: Options) -> dict[str, Any]:
    """What several runs of one system came to; lists have one number a round."""
    rates = [round(rate(result, options), 1) for result in results]
    median = statistics.median(rates)
    first = [result["stamps_s"][0] for result in results]
    skip = options.discard
    return {
        "tokens_per_s": rates,
        "supervised_tokens_per_s": [round(rate(result, options, "supervised"), 1) for result in results],
        "median_tokens_per_s": median,
        "cpu_s_per_1000_tokens": [
            round((r["cpu_s"][-1] - r["cpu_s"][skip - 1]) / sum(r["tokens"][skip:]) * 1000, 3) for r in results
        ],
        "time_to_first_step_s": first,
        "tokens_in_10_minutes": round(median * (600 - statistics.median(first))),
        "max_rss_bytes": [result["peak_rss_bytes"] for result in results],
        "rss_before_bytes": [result["begun"]["rss_bytes"] for result in results],
        "activation_bytes": [result["kept_bytes"] for result in results],
        "measured_steps": [len(result["stamps_s"]) - skip for result in results],
        "first_loss": results[0]["losses"][0],
        "last_losses": results[0]["losses"][-5:],
        "held_out": score,
        "resolved": results[0]["resolved"],
    }


def line(name: str, result: dict[str, Any], options: Options) -> str:
    """One run in one line."""
    return (
        f"{name:<32} {rate(result, options):8.1f} tokens/s, first step after {result['stamps_s'][0]:5.1f} s, "
        f"{result['peak_rss_bytes'] / 1e9:5.2f} GB, losses {result['losses'][0]:.4f} … {result['losses'][-1]:.4f}"
    )


def recipe(options: Options) -> tuple[dict[str, Any], dict[str, float]]:
    """Wall-clock from the launch to a fixed bits-per-byte, free choice of method, several seeds.

    The peer's best rate is the one with the least bits per byte at the end, seed 0. Without a given target it is what
    the peer reaches with every seed.
    """
    peers = peer_recipes()
    tuned = {name: curve_of(name, settings, options, 0) for name, settings in peers.items()}
    best = min(tuned, key=lambda name: tuned[name][-1][1])
    curves: dict[str, list[list[tuple[float, float]]]] = {best: [], "ours": []}
    for seed in range(options.seeds):
        for name in curves:
            settings = OUR_RECIPE if name == "ours" else peers[name]
            curves[name].append(curve_of(name, settings, options, seed))
    target = options.target or max(curve[-1][1] for name in curves if name != "ours" for curve in curves[name])
    reached = {name: [time_to(curve, target) for curve in found] for name, found in curves.items()}
    arrived = {name: [s for s in seconds if s is not None] for name, seconds in reached.items()}
    medians = {name: statistics.median(s) for name, s in arrived.items() if len(s) == options.seeds}
    others = [seconds for name, seconds in medians.items() if name != "ours"]
    ratios = {"time_to_bpb": round(min(others) / medians["ours"], 3)} if others and "ours" in medians else {}
    settings = {"peers": peers, "ours": OUR_RECIPE}
    tuning = {name: curve[-1] for name, curve in tuned.items()}
    facts = {"target_bits_per_byte": target, "curves": curves, "seconds": reached, "tuning": tuning}
    return {"recipe": {**facts, "settings": settings}}, ratios


def curve_of(name: str, settings: dict[str, Any], options: Options, seed: int) -> list[tuple[float, float]]:
    """(seconds since the launch, bits per byte of held-out text) of a recipe's snapshots."""
    result = recipe_run(name, settings, options, seed).result(options, round_=seed)
    scores = judge("recipe", {str(kept["step"]): kept["folder"] for kept in result["snapshots"]}, options)
    curve = [(k["seconds"], round(scores[str(k["step"])]["bits_per_byte"], 5)) for k in result["snapshots"]]
    print(f"{name} seed {seed}: {json.dumps(curve)}", flush=True)
    return curve


def time_to(curve: list[tuple[float, float]], target: float) -> float | None:
    """When a curve of (seconds, bits per byte) first reaches the target, on straight lines between its points."""
    before: tuple[float, float] | None = None
    for seconds, bits in curve:
        if bits <= target:
            if before is None or before[1] == bits:
                return seconds
            return before[0] + (seconds - before[0]) * (before[1] - target) / (before[1] - bits)
        before = (seconds, bits)
    return None


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TRACKS), help="tracks to run; the result keeps its others")
    parser.add_argument("--quick", action="store_true", help="few steps, one round, no recipes: minutes")
    parser.add_argument("--fresh", action="store_true", help="forget finished runs")
    parser.add_argument("--rounds", type=int, help="runs of each system")
    parser.add_argument("--steps", type=int, help="steps of every run")
    parser.add_argument("--discard", type=int, help="first steps left out")
    parser.add_argument("--threads", type=int, default=2, help="threads of every run")
    parser.add_argument("--jobs", default="", help="only systems whose name contains one of these (comma-separated)")
    parser.add_argument("--target", type=float, help="bits per byte to reach; default: what the best peer reaches")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe")
    parser.add_argument("--anyway", action="store_true", help="start on a busy machine too")
    given = parser.parse_args()
    only = tuple(track for track in given.only.split(",") if not (given.quick and track == "recipe"))
    unknown = set(only) - set(TRACKS)
    if unknown:
        parser.error(f"unknown track {min(unknown)}; known: {', '.join(TRACKS)}")
    return Options(
        only=only, quick=given.quick, fresh=given.fresh, rounds=given.rounds or (1 if given.quick else 3),
        steps=given.steps, discard=given.discard or (2 if given.quick else 5), threads=given.threads,
        wanted=tuple(filter(None, given.jobs.split(","))), target=given.target, seeds=given.seeds,
        probe_steps=given.steps or (6 if given.quick else 12), is_busy=given.anyway,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
