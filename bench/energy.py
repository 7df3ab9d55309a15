"""Our energy figure beside codecarbon's, over the same job in the same process at the same time.

    make bench-energy

Trains a small network on all cores for JOB_S seconds, twice: codecarbon counts the process alone, then the whole
machine. It lives in an environment of its own under .bench and runs offline, so nothing is looked up. Without counters
in the processor that may be read both sides estimate, and the result says so. Writes bench/results/energy.json.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, refuse_when_busy, write_result

JOB_S = 40.0
CODECARBON = "3.3.2"
COUNTRY = "USA"
"""codecarbon wants one; only its CO2 depends on it, and only energy is compared."""
ENVIRONMENT = ROOT / ".bench" / "energy" / "venv"


def job(seconds: float) -> int:
    """Steps of a small network on all cores; returns how many."""
    import torch

    network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8)))
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    batch = torch.randn(512, 1024)
    steps, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        optimiser.zero_grad()
        network(batch).square().mean().backward()
        optimiser.step()
        steps += 1
    return steps


def watch(mode: str, more_packages: list[str], out: Path) -> None:
    """In codecarbon's environment: the job under both meters."""
    from codecarbon import OfflineEmissionsTracker  # pyright: ignore[reportMissingImports]

    sys.path += more_packages  # behind its own: torch and danlu are not installed there
    from danlu.lineage.energy import WATTS_PER_CORE, EnergyMeter

    job(2.0)
    theirs = OfflineEmissionsTracker(
        country_iso_code=COUNTRY, tracking_mode=mode, measure_power_secs=2, save_to_file=False, log_level="error"
    )
    theirs.start()
    ours, cpu_s = EnergyMeter(), time.process_time()
    steps = job(JOB_S)
    energy, cpu_s = ours.stop(), time.process_time() - cpu_s
    theirs.stop()
    found = theirs.final_emissions_data
    values = {
        "ours_wh": round(energy.value_wh, 4),
        "ours_method": energy.method,
        "ours_watts_per_busy_core": WATTS_PER_CORE,
        "busy_core_seconds": round(cpu_s, 1),
        "codecarbon_wh": round(1000 * found.energy_consumed, 4),
        "codecarbon_cpu_wh": round(1000 * found.cpu_energy, 4),
        "codecarbon_ram_wh": round(1000 * found.ram_energy, 4),
        "codecarbon_cpu_watts": round(found.cpu_power, 2),
        "codecarbon_ram_watts": round(found.ram_power, 2),
        "codecarbon_cpu": found.cpu_model,
        "codecarbon_cpu_watts_per_busy_core": round(3_600_000 * found.cpu_energy / cpu_s, 2),
        "seconds": round(found.duration, 1),
        "steps": steps,
        "ratio": round(energy.value_wh / (1000 * found.energy_consumed), 3),
    }
    out.write_text(json.dumps(values), encoding="utf-8")


def main() -> int:
    """Measure, print and write."""
    if sys.argv[1:2] == ["--watch"]:
        watch(sys.argv[2], sys.argv[4:], Path(sys.argv[3]))
        return 0
    load = refuse_when_busy()
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"codecarbon=={CODECARBON}"], check=True)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mode in ("process", "machine"):
            out = Path(scratch) / f"{mode}.json"
            packages = [*site.getsitepackages(), str(ROOT / "src")]
            own = {name: value for name, value in os.environ.items() if not name.startswith("CODECARBON")}
            subprocess.run([python, __file__, "--watch", mode, out, *packages], check=True, env=own)
            runs[mode] = json.loads(out.read_text(encoding="utf-8"))
            print(
                f"codecarbon, {mode}: {runs[mode]['codecarbon_wh']:.3f} Wh, "
                f"ours ({runs[mode]['ours_method']}): {runs[mode]['ours_wh']:.3f} Wh, ratio {runs[mode]['ratio']:.2f}"
            )
    ratios = {f"energy_vs_codecarbon_{mode}": run["ratio"] for mode, run in runs.items()}
    path = write_result("energy", load, {**runs, "codecarbon": CODECARBON}, ratios, ())
    print(f"Written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
