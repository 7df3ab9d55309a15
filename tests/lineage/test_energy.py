import time
from pathlib import Path

import pytest

from danlu.lineage.energy import WATTS_PER_CORE, EnergyMeter


def package(root: Path, number: int, microjoules: int, name: str = "package-0", wraps_at: int = 1_000_000_000) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_package_counters_are_summed_and_labelled_measured(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 1000), package(tmp_path, 1, 5000)
    package(tmp_path, 2, 0, name="psys")
    meter = EnergyMeter(0.5, tmp_path)
    first.write_text(str(1000 + 3_600_000))
    second.write_text(str(5000 + 7_200_000))
    energy = meter.stop()
    assert energy.method == "measured"
    assert energy.value_wh == pytest.approx((3.6 + 7.2) / 3600, abs=1e-6)
    assert energy.gco2 == pytest.approx(energy.value_wh * 0.5, abs=1e-6)


def test_a_counter_that_wrapped_still_counts_up(tmp_path: Path) -> None:
    counter = package(tmp_path, 0, 900_000_000)
    meter = EnergyMeter(powercap=tmp_path)
    counter.write_text("100000000")
    assert meter.stop().value_wh == pytest.approx(200 / 3600, abs=1e-6)


def test_without_counters_busy_seconds_are_an_estimate_and_say_so(tmp_path: Path) -> None:
    meter, started = EnergyMeter(powercap=tmp_path), time.process_time()
    while time.process_time() - started < 0.1:
        pass
    energy = meter.stop()
    assert energy.method == "estimated"
    assert 0.05 * WATTS_PER_CORE / 3600 < energy.value_wh < 5 * WATTS_PER_CORE / 3600
    assert energy.grid_kg_per_kwh == 0.48
