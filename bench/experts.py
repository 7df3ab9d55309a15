"""Layers of experts against transformers' with the same weights: forward, forward and backward, one decoding step.

    make bench-experts                 (ARGS="--rounds N")

Theirs is Qwen3-MoE's block with its three ways to run experts: "eager" (its loop over experts, what plain ratios are
about), "grouped_mm" (its default) and "batched_mm" (decoding only, where it is meant for). Several batches come round,
all seen once before the clock starts: kernels are compiled for a number of rows, and real batches differ in theirs. A
step is forward and backward with gradients of all weights and of the input. Without gradients our weights are packed,
as ``danlu.load`` and the server pack them. Writes bench/results/experts.json.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from measure import in_turn, print_ratios, refuse_when_busy, write_result
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from danlu.models.experts import ExpertsConfig
from danlu.models.packed import pack_weights

NOTHING = cast(Any, None)
"""Experts without a capacity look at neither places nor rows."""


@dataclass(frozen=True)
class Shape:
    """One layer."""

    width: int
    inner: int
    num_experts: int
    top_k: int


SHAPES = {"32of4": Shape(512, 1024, 32, 4), "64of8": Shape(1024, 512, 64, 8)}
"""A layer of few large experts, and half of OLMoE's."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--anyway", action="store_true", help="start on a busy machine too")
    arguments = parser.parse_args()
    load = refuse_when_busy()
    runs: dict[str, Any] = {}
    for (shape, size), (suffix, dtype) in itertools.product(SHAPES.items(), TYPES.items()):
        if not f"moe_{shape}_{suffix}".startswith(arguments.only):
            continue
        for name, ours, theirs, repeats in cases(size, dtype):
            case = f"moe_{name.replace('@', f'_{shape}_{suffix}')}"
            rounds = max(2, arguments.rounds // 2) if "step" in name else arguments.rounds
            with torch.set_grad_enabled("step" in name):
                runs[case] = in_turn(ours, theirs, rounds, repeats=repeats)
            print_ratios({case: runs[case]})
    ratios = {name: run["ratio"] for name, run in runs.items() if "_vs_" not in name}
    for kind in ("moe_forward", "moe_step", "moe_decode"):
        of_kind = [ratio for name, ratio in ratios.items() if name.startswith(kind)]
        if of_kind:
            ratios[kind] = round(statistics.geometric_mean(of_kind), 3)
            print(f"{kind}: geometric mean {ratios[kind]:.2f}")
    ratios["moe"] = round(statistics.geometric_mean([ratios["moe_forward"], ratios["moe_step"]]), 3)
    print(write_result("experts", load, runs, ratios, ("transformers",)))
    return 0


@dataclass(frozen=True)
class Layer:
    """One way to run one layer."""

    run: Callable[[Tensor], Tensor]
    """(N, D) → (N, D)."""
    weights: list[nn.Parameter]

    def forward(self, batches: Iterator[Tensor]) -> Tensor:
        """The next batch."""
        return self.run(next(batches))

    def step(self, batches: Iterator[Tensor]) -> None:
        """Forward and backward of the next batch; gradients are made anew each time."""
        x = next(batches).clone().requires_grad_()
        torch.autograd.grad(self.run(x).float().square().mean(), [x, *self.weights])


def cases(shape: Shape, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object], Callable[[], object], int]]:
    """Name with an @ where shape and type go, ours, theirs, calls a timing."""
    ours, packed, theirs = pair(shape, dtype)
    for way, layer in theirs.items():
        versus = "" if way == "eager" else f"_vs_{way}"
        if way != "batched_mm":
            for kind, num_batches in (("forward", 4), ("step", 2)):
                own = packed if kind == "forward" else ours
                mine, other = (bound(getattr(one, kind), shape, dtype, 512, num_batches) for one in (own, layer))
                yield f"{kind}@{versus}", mine, other, 1
        for count in (1, 8):
            mine, other = (bound(one.forward, shape, dtype, count, 16) for one in (packed, layer))
            yield f"decode{count}@{versus}", mine, other, 8 if way != "batched_mm" else 2


def bound(
    call: Callable[[Iterator[Tensor]], object], shape: Shape, dtype: torch.dtype, count: int, num_batches: int
) -> Callable[[], object]:
    """The call on batches that come round, each seen once already; both sides get the same ones."""
    torch.manual_seed(count)
    batches = itertools.cycle([torch.randn(count, shape.width, dtype=dtype) for _ in range(num_batches)])
    with torch.set_grad_enabled(call.__name__ == "step"):
        for _ in range(num_batches):
            call(batches)
    return lambda: call(batches)


def pair(shape: Shape, dtype: torch.dtype) -> tuple[Layer, Layer, dict[str, Layer]]:
    """Ours, the same packed for inference, and theirs by way; raises when they do not agree in fp32."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=shape.width,
        moe_intermediate_size=shape.inner,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        norm_topk_prob=True,
    )
    block = Qwen3MoeSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.05)
    mine = ExpertsConfig(num_experts=shape.num_experts, top_k=shape.top_k, width=shape.inner, normalise=True)
    experts = mine.make(shape.width)
    weights = {"gate_up": block.experts.gate_up_proj, "down": block.experts.down_proj, "router": block.gate.weight}
    experts.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()})

    def under(way: str) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            config._experts_implementation = way
            return block(x.unsqueeze(0))[0]

        return run

    ours = Layer(lambda x: experts(x, NOTHING, NOTHING), list(experts.parameters()))
    theirs = {way: Layer(under(way), list(block.parameters())) for way in ("eager", "grouped_mm", "batched_mm")}
    with torch.no_grad():
        x = torch.randn(64, shape.width)
        for layer in theirs.values():
            torch.testing.assert_close(ours.run(x), layer.run(x), rtol=1e-3, atol=1e-3)
    for module in (experts, block):
        module.to(dtype)
    packed = copy.deepcopy(experts)
    pack_weights(packed)
    return ours, Layer(lambda x: packed(x, NOTHING, NOTHING), []), theirs


if __name__ == "__main__":
    sys.exit(main())
