"""A model as a run wants it: which number types its weights are read in. Knows no data and no loss."""

from __future__ import annotations

from pathlib import Path

import torch

from danlu.core.device import compute_dtype, pick_device
from danlu.models.load import load_model
from danlu.models.model import Model, Precision
from danlu.train.settings import RunConfig


def load_to_train(path: Path, config: RunConfig, device: torch.device | None = None) -> Model:
    """The model of a folder or .gguf file for ``config``'s method.

    With an adapter the frozen base is read in the type it computes in, or in 8 bits. Weights that train are read in
    fp32; the run lowers the network and keeps fp32 masters (weights.py).
    """
    device = device or pick_device()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(config.precision) or compute_dtype(device)
    if config.lora is None:
        model = load_model(path, precision="fp32", device=device)
        model.activation_dtype = dtype
        return model
    precision: Precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    return load_model(path, precision=precision, device=device, scheme="int8" if config.int8_base else None)
