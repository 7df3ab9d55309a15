"""GGUF files out: a model folder as one file that llama.cpp and its relatives run. Weights pass through one by one.

Matrices are stored in the form asked for; as in llama.cpp's own files, norms, biases, routers and tables of positions
stay F32, and a matrix whose rows do not fit blocks of 32 becomes F16. In Q4_0 files the head (or the token table that
is also the head) is Q8_0, because four bits there cost more than they save. Rounding is the ``gguf`` package's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Form
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from danlu.core.errors import ModelError, nearest
from danlu.core.files import disk_errors, sync_folder
from danlu.models.archs import Architecture
from danlu.models.checkpoint import open_checkpoint
from danlu.models.licence import Licence, licence_to_gguf
from danlu.models.load import checked_weights
from danlu.models.network import ModelConfig
from danlu.text.chat import ChatFormat
from danlu.text.gguf_write import gguf_tokenizer

FORMS = {"f32": Form.F32, "f16": Form.F16, "bf16": Form.BF16, "q8_0": Form.Q8_0, "q4_0": Form.Q4_0}
"""Forms that can be written."""
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
_PLAIN = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight")
"""Ends of names of matrices that stay F32."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    """The file."""
    size_bytes: int
    """Its size."""
    forms: dict[str, int]
    """Tensors in each form."""


def export_gguf(
    source: Path, out: Path, form: str = "q8_0", *, name: str | None = None, licence: str | None = None
) -> Export:
    """Write a model folder (or a GGUF file again in another form) as ``out``. Raises ModelError when the family, its
    config or its tokenizer has no GGUF form, or when the model is quantised already. ``licence`` is a short name; None
    for what the source says."""
    if form not in FORMS:
        raise ModelError(f"The form {form!r} cannot be written.", nearest(form, FORMS))
    checkpoint = open_checkpoint(source)
    architecture, config = checkpoint.architecture, checkpoint.config
    if checkpoint.scheme is not None:
        raise ModelError(
            f"{source} is quantised already ({checkpoint.scheme}).", "Export the plain model it was made of."
        )
    if architecture.gguf is None:
        raise ModelError(f"The family '{architecture.model_type}' has no GGUF form.", "Save it as a model folder.")
    if checkpoint.chat is None:
        raise ModelError(f"{source} has no tokenizer, which a GGUF file must hold.", "Put tokenizer.json beside it.")
    numbers, factors = architecture.config_to_gguf(checkpoint.theirs)
    shapes, read = checked_weights(checkpoint)
    plan = {theirs: _place(architecture, theirs, shape, config, form) for theirs, shape in shapes.items()}
    said = licence_to_gguf(checkpoint.licence if licence is None else Licence(identifier=licence))
    with _writer(out, architecture.gguf) as writer:
        _describe(writer, numbers, checkpoint.chat, config, form, name or source.stem, said)
        for tensor_name, factor in factors.items():
            writer.add_tensor_info(tensor_name, factor.shape, np.dtype(np.float32), 4 * factor.numel())
        for stored in plan.values():
            shape = quant_shape_to_byte_shape(stored.shape, stored.form)
            writer.add_tensor_info(
                stored.name, shape, np.dtype(np.uint8), int(np.prod(shape, dtype=np.int64)), raw_dtype=stored.form
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factor in factors.values():
            writer.write_tensor_data(factor.float().contiguous().numpy())
        for theirs, stored in plan.items():
            writer.write_tensor_data(_stored(architecture, theirs, read, config, stored.form))
    forms = [stored.form.name for stored in plan.values()]
    return Export(out, out.stat().st_size, {name: forms.count(name) for name in sorted(set(forms))})


@dataclass(frozen=True)
class _Place:
    """Where one tensor goes."""

    name: str
    shape: tuple[int, ...]
    form: Form


def _place(
    architecture: Architecture, theirs: str, shape: tuple[int, ...], config: ModelConfig, form: str
) -> _Place:  # fmt: skip
    name = architecture.gguf_name(theirs)
    turned = tuple(architecture.weight_to_gguf(theirs, torch.empty(shape, device="meta"), config).shape)
    wanted = FORMS[form]
    if len(turned) < 2 or name.endswith(_PLAIN):
        wanted = Form.F32
    elif wanted in (Form.Q8_0, Form.Q4_0):
        is_head = name == "output.weight" or (name == "token_embd.weight" and config.is_tied)
        wanted = Form.F16 if turned[-1] % 32 else Form.Q8_0 if is_head else wanted
    return _Place(name, turned, wanted)


def _stored(
    architecture: Architecture, theirs: str, read: Callable[[str], Tensor], config: ModelConfig, form: Form
) -> np.ndarray[Any, Any]:
    weight = architecture.weight_to_gguf(theirs, read(theirs).float(), config)
    stored: np.ndarray[Any, Any] = gguf.quantize(weight.contiguous().numpy(), form)
    return np.ascontiguousarray(stored).view(np.uint8)


def _describe(
    writer: gguf.GGUFWriter,
    numbers: dict[str, Any],
    chat: ChatFormat,
    config: ModelConfig,
    form: str,
    name: str,
    said: dict[str, str],
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[form])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in {**said, **numbers, **gguf_tokenizer(chat, config.vocabulary_size)}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


@contextmanager
def _writer(out: Path, family: str) -> Iterator[gguf.GGUFWriter]:
    """A file that is whole or absent."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        writer = gguf.GGUFWriter(unfinished, family)
        try:
            yield writer
            writer.flush()
            writer.close()
            with open(unfinished, "rb+") as handle:
                os.fsync(handle.fileno())
            unfinished.replace(out)
            sync_folder(out.parent)
        finally:
            writer.close()
            unfinished.unlink(missing_ok=True)
