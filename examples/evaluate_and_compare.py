"""Make a model smaller, score both on the same held-out rows, and ask whether the difference is more than chance.

python examples/evaluate_and_compare.py MODEL test.jsonl out/
"""

import sys
from pathlib import Path

import danlu
from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.events import Events
from danlu.core.files import read_jsonl
from danlu.evaluate.compare import compare
from danlu.evaluate.run import EvaluateConfig, evaluate


def main(name: str, rows: str, out: str) -> None:
    plain, small = danlu.locate(name), Path(out) / "int8"
    print(f"size ratio {quantize(plain, small, QuantizeConfig())['size_ratio']:.3f}")
    config = EvaluateConfig(max_items=50, max_tokens=48)
    for label, folder in (("plain", plain), ("small", small)):
        with danlu.engine(folder) as engine:
            scores = evaluate(engine, read_jsonl(Path(rows)), config, Path(out) / label, Events())
        print(f"{label}: BLEU-4 {scores['bleu4']['value']:.2f}, {scores['items_per_s']:.1f} items/s")
    for metric, found in compare(Path(out) / "plain", Path(out) / "small").items():
        interval = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
        print(f"{metric}: {found['difference']:+.3f} {interval}, p(lower) {found['p_lower']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
