"""Merging as a stage: a plain model folder, in the number type that was asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from danlu.flow.stages.merge import Merge, MergeConfig
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.models.model import Precision
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig, add_lora

from ...models.peer import save_llama


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_merged_model_has_the_number_type_asked_for(
    precision: Precision, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_llama(tmp_path / "model")
    model, config = load_model(tmp_path / "model", precision="fp32"), LoraConfig(rank=2)
    for parameter in add_lora(model, config):
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "adapter", config, base="x")
    inputs = {"model": tmp_path / "model", "adapter": tmp_path / "adapter"}
    context: Any = SimpleNamespace(inputs=inputs, output=tmp_path / "merged")
    metrics = Merge().run(MergeConfig(precision=precision), cast("StageContext", context))
    assert metrics["largest_change"] > 0.01
    assert (metrics["largest_rounding"] > 0) == (precision == "bf16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {dtype}
