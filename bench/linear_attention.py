"""Recurrent layers against softmax attention of the same width, from 1,024 to 16,384 tokens of one row.

    make bench-linear-attention        (ARGS="--rounds N", "--lengths 1024,2048", "--dtype bf16")

Four layers, each with its projections: Mamba-2 and Gated DeltaNet (the shapes of the published 130M model and of
Qwen3-Next, at width 768), our attention, and attention written with torch's scaled_dot_product_attention. They are
timed in turn, forward alone and with gradients of input and weights. ``ratios`` say how many times faster than torch's
attention a layer is; ``growth`` how much longer the longest row takes than the shortest (linear: as many times as it is
longer). Writes bench/results/linear_attention.json and docs/images/linear_attention.svg.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, refuse_when_busy, write_result
from torch import Tensor, nn

from danlu.flow.charts import Series, line_chart
from danlu.models.attend import PackedAttend
from danlu.models.attention import Attend, AttentionConfig, Places
from danlu.models.block import MixerConfig
from danlu.models.delta import DeltaConfig
from danlu.models.mamba import Mamba2Config
from danlu.models.norms import NormConfig

WIDTH = 768
CONFIGS: dict[str, MixerConfig] = {
    "mamba2": Mamba2Config(num_heads=24, head_width=64, state_width=128),
    "deltanet": DeltaConfig(num_key_heads=6, num_value_heads=12, key_width=128, value_width=128),
    "attention": AttentionConfig(num_heads=12, num_kv_heads=12, head_width=64),
}
TITLES = {"mamba2": "Mamba-2", "deltanet": "DeltaNet", "attention": "attention", "sdpa": "SDPA"}
PLOT = ROOT / "docs" / "images" / "linear_attention.svg"
NOWHERE = Places(torch.zeros(0), {})
"""No layer here has positions."""

Times = dict[str, dict[int, list[float]]]
"""Layer → tokens → milliseconds of every run."""


class TorchAttention(nn.Module):
    """Attention as one writes it with torch alone."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        q, k, v = self.qkv(x).view(1, x.shape[0], 3 * self.num_heads, -1).transpose(1, 2).chunk(3, dim=1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], -1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timings of each")
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384", help="tokens of a row")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="type of weights and input")
    parser.add_argument("--anyway", action="store_true", help="start on a busy machine too")
    arguments = parser.parse_args()
    load = refuse_when_busy()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    dtype = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
    runs: dict[str, Any] = {"dtype": arguments.dtype, "width": WIDTH}
    medians: dict[str, Mapping[str, Mapping[int, float]]] = {}
    for kind in ("forward", "step"):
        times = timed(kind, lengths, dtype, arguments.rounds)
        runs[f"{kind}_ms"] = times
        medians[kind] = {
            name: {length: statistics.median(found) for length, found in of.items()} for name, of in times.items()
        }
    runs["growth"] = {
        f"{name}_{kind}": round(of[lengths[-1]] / of[lengths[0]], 2)
        for kind, layers in medians.items()
        for name, of in layers.items()
    }
    ratios = {
        f"{name}_{kind}_{length}": round(medians[kind]["sdpa"][length] / medians[kind][name][length], 3)
        for kind in medians
        for name in CONFIGS
        for length in lengths
    }
    draw(medians, PLOT)
    print("growth:", ", ".join(f"{name} {times}×" for name, times in runs["growth"].items()))
    print(write_result("linear_attention", load, runs, ratios, ()), PLOT)
    return 0


def timed(kind: str, lengths: Sequence[int], dtype: torch.dtype, rounds: int) -> Times:
    """Milliseconds of every layer at every length, layers in turn, after one run that is not counted."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {name: config.make(WIDTH, NormConfig(), 0) for name, config in CONFIGS.items()}
    layers["sdpa"] = TorchAttention(12)
    times: Times = {name: {length: [] for length in lengths} for name in layers}
    for length in lengths:
        x = torch.randn(length, WIDTH, dtype=dtype, requires_grad=kind == "step")
        attend = PackedAttend([length])
        for turn in range(rounds + 1):
            for name, layer in layers.items():
                layer.to(dtype)
                started = time.perf_counter()
                run(layer, x, attend)
                if turn:
                    times[name][length].append(round((time.perf_counter() - started) * 1000.0, 3))
        found = (f"{TITLES[name]} {statistics.median(of[length]):,.0f}" for name, of in times.items())
        print(f"{kind} {length:>6} tokens, ms: {', '.join(found)}", flush=True)
    return times


def run(layer: nn.Module, x: Tensor, attend: PackedAttend) -> None:
    """The output; its gradients too when ``x`` wants one."""
    with torch.set_grad_enabled(x.requires_grad):
        y = layer(x, NOWHERE, attend)
        if x.requires_grad:
            torch.autograd.grad(y.sum(), [x, *layer.parameters()])


STYLE = """
text { font-family: system-ui, sans-serif; fill: #6d675e; font-size: 12px; } .title { font-size: 15px; fill: #1d1b18; }
.grid { stroke: #e6e1d7; } .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; } .dot { stroke-width: 2; }
.mamba2 { stroke: #c2412d; } .deltanet { stroke: #1f7a6b; } .attention { stroke: #8a6d3b; } .sdpa { stroke: #4a5a8a; }
.dot { fill: #fff; } .end { stroke: none; font-weight: 600; }
.end.mamba2 { fill: #c2412d; } .end.deltanet { fill: #1f7a6b; } .end.attention { fill: #8a6d3b; }
.end.sdpa { fill: #4a5a8a; }
"""


def draw(medians: Mapping[str, Mapping[str, Mapping[int, float]]], path: Path) -> None:
    """Two charts on one white card: seconds over tokens."""
    width, height = 960, 340
    parts: list[str] = []
    for index, (kind, layers) in enumerate(medians.items()):
        series = [
            Series(
                name=TITLES[name],
                points=[(tokens, ms / 1000.0) for tokens, ms in of.items()],
                style=name,
                has_dots=True,
            )
            for name, of in layers.items()
        ]
        top = index * (height + 40)
        title = "forward" if kind == "forward" else "forward and backward"
        chart = line_chart(series, "tokens of a row", "seconds", width, height)
        parts.append(f'<text class="title" x="52" y="{top + 26}">One layer of width {WIDTH}, {title}</text>')
        placed = f'<svg x="0" y="{top + 36}" width="{width}" height="{height}" '
        parts.append(str.replace(chart, "<svg ", placed, 1))  # Markup's own would escape it
    whole = len(medians) * (height + 40) + 10
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}">'
        f'<style>{STYLE}</style><rect width="{width}" height="{whole}" fill="#fff"/>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
