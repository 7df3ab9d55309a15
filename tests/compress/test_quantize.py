import json
from pathlib import Path

import pytest

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.errors import ConfigError
from danlu.models.load import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_ratio_is_of_the_files_bytes_to_four_bytes_a_parameter(tmp_path: Path, tiny_folder: Path) -> None:
    report = quantize(tiny_folder, tmp_path / "q", QuantizeConfig())
    parameters = load_model(tiny_folder).num_parameters()
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert (report["size_bytes"], report["fp32_bytes"]) == (size, 4 * parameters)
    assert report["size_ratio"] == round(size / (4 * parameters), 5)


def test_the_folder_says_how_it_is_quantised(tmp_path: Path, tiny_folder: Path) -> None:
    quantize(tiny_folder, tmp_path / "q", QuantizeConfig())
    notes = json.loads((tmp_path / "q" / "danlu.json").read_text())
    assert notes["quantization"]["scheme"] == "int8"
    assert load_model(tmp_path / "q").scheme == "int8"


def test_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method is 'int9'\. Did you mean 'int8'"):
        QuantizeConfig(method="int9")
    with pytest.raises(ConfigError, match=r"calibration_rows is -1\. Use 0 \(none\) or more"):
        QuantizeConfig(calibration_rows=-1)
