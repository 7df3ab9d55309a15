"""Write a model in another form: one GGUF file, for llama.cpp and what is built on it.

MODEL is a model folder or .gguf file, an alias, a stage of the latest run, an artifact id, or a hub id (owner/name).

Examples:
  danlu export product-copy --out product-copy.gguf
  danlu export ./my-model --type f16 --out my-model-f16.gguf
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

import danlu
from danlu.cli.options import Home
from danlu.core.errors import ConfigError


def command(
    model: tyro.conf.Positional[str],
    *,
    out: Path,
    to: Literal["gguf"] = "gguf",
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "q8_0",
    name: str | None = None,
    licence: str | None = None,
    force: tyro.conf.FlagCreatePairsOff[bool] = False,
    home: Home = None,
) -> int:
    """Write a model in another form.

    Args:
        model: Model folder or .gguf file, alias, stage of the latest run, artifact id, or hub id.
        out: The file to write.
        to: The format.
        type: How matrices are stored: 32, 16, 8 or 4 bits a weight.
        name: The model's name inside the file; the name given as MODEL if left out.
        licence: The model's licence inside the file; what its card says if left out.
        force: Write over a file that is there.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists.", "Give another --out, or --force to write over it.")
    path = danlu.locate(model, home)
    from danlu.models.gguf_write import export_gguf  # loads torch: only once the model is found

    assert to == "gguf"
    done = export_gguf(path, out, type, name=name or Path(model).stem, licence=licence)
    forms = ", ".join(f"{count} {form}" for form, count in done.forms.items())
    print(f"{done.path}: {done.size_bytes / 1e6:,.1f} MB, {sum(done.forms.values())} tensors ({forms})")
    return 0
