"""Write a checkpoint that is one file as a model folder, in the layout that danlu and Hugging Face libraries read.

SOURCE is a GGUF file, or weights of torchvision's ResNet-18 to -152 or MobileNetV2 (.pth or .safetensors; a .pth file
is read without running it). A network is told by its tensors, so the file may have any name. Weights of a GGUF file
become fp32, which keeps every value. `danlu export` goes the other way.

LABELS name the classes in order: a text with one on each line, or a JSON list or object {"0": "tench", ...}.

Examples:
  danlu convert resnet50-11ad3fa6.pth --out resnet50 --labels imagenet_classes.txt
  danlu convert SmolLM2-135M-Instruct.Q8_0.gguf --out smollm2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from danlu.core.errors import ConfigError
from danlu.core.files import atomic_folder, read_json, require_no_folder, utf8_lines


def command(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")],
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    labels: Annotated[Path | None, tyro.conf.arg(metavar="LABELS")] = None,
    licence: str | None = None,
) -> int:
    """Write a checkpoint of one file as a model folder.

    Args:
        source: The file: .gguf, .pth, .pt, .bin or .safetensors.
        out: The folder to write; it must not be there yet.
        labels: File with the names of the classes; LABEL_0, LABEL_1, ... if left out.
        licence: The model's licence (apache-2.0, bsd-3-clause, ...); what a GGUF file says if left out.
    """
    if source.is_dir():
        raise ConfigError(f"{source} is a folder.", "Give one file; a model folder needs no conversion.")
    if not source.is_file():
        raise ConfigError(f"There is no file {source}.", "Give a .gguf, .pth or .safetensors file.")
    is_gguf = source.suffix == ".gguf"
    if is_gguf and labels is not None:
        raise ConfigError("--labels are given, but a GGUF file is no classifier.", "Leave them out.")
    require_no_folder(out)
    words = None if labels is None else read_labels(labels)
    from danlu.models.convert import convert_torchvision  # loads torch: only once all else is right
    from danlu.models.inspect import inspect_model
    from danlu.models.licence import Licence
    from danlu.models.load import load_model
    from danlu.models.save import save_model

    given = None if licence is None else Licence(identifier=licence)
    if is_gguf:
        model = load_model(source, precision="fp32")
        model.licence = given or model.licence
        with atomic_folder(out) as unfinished:
            save_model(model, unfinished)
    else:
        convert_torchvision(source, out, words, given)
    facts = inspect_model(out)
    number = f"{facts.counts.parameters / 1e6:,.1f}M parameters"
    print(f"{out}: {facts.family}, {number}, {facts.stored_bytes / 1e6:,.1f} MB")
    return 0


def read_labels(path: Path) -> list[str]:
    """Names of classes in order: lines of a text, or a JSON list or object with the numbers 0, 1, … as keys."""
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", "Give a file with the name of a class on each line.")
    if path.suffix == ".json":
        found = read_json(path)
        if isinstance(found, dict) and found.keys() == {str(number) for number in range(len(found))}:
            found = [found[str(number)] for number in range(len(found))]
        if not isinstance(found, list):
            raise ConfigError(
                f"{path} is neither a list of names nor an object of number and name.", "Number classes from 0."
            )
    else:
        found = [line.strip() for line in "".join(utf8_lines(path)).rstrip().splitlines()]
    for number, name in enumerate(found):
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{path}: class {number} is called {name!r}.", "Give each class a name.")
    return found
