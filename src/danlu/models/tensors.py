"""Writing tensors to a safetensors file. Knows names and tensors, not what they mean."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from danlu.core.files import disk_errors


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``path``; a full or read-only disk is a ResourceError, as everywhere.

    The library hides the system's error number in a message of its own, so it is read from there.
    """
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with disk_errors(path):
        try:
            save_file(whole, path, metadata={"format": "pt"})
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets nobody else read; who may is the folder's say
