"""Image files that cannot be read, found before a run is paid for (findings.py). Knows no task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danlu.core.errors import DataError
from danlu.models.images import open_image, read_image
from danlu.train.findings import Finding

MOST_OPENED = 5000
"""Files whose beginning is read, taken evenly."""
MOST_UNPACKED = 100
"""Files of which every pixel is, which shows those that end early."""


def unreadable(paths: Sequence[Path]) -> Finding | None:
    """Files that would stop the run when their batch comes."""
    opened, unpacked = _evenly(paths, MOST_OPENED), set(_evenly(paths, MOST_UNPACKED))
    faults = [fault for path in opened if (fault := _fault(path, whole=path in unpacked))]
    if not faults:
        return None
    share = len(faults) / len(opened)
    return Finding(
        code="unreadable",
        refuses=True,
        share=share,
        message=f"{share:.1%} of the images cannot be read.",
        hint="Take these rows out, or give the files again.",
        example=faults[0],
    )


def _evenly(paths: Sequence[Path], most: int) -> list[Path]:
    distinct = list(dict.fromkeys(paths))
    return distinct[:: max(1, -(-len(distinct) // most))]


def _fault(path: Path, *, whole: bool) -> str:
    try:
        with open_image(path) as image:
            if whole:
                read_image(image)
    except DataError as error:
        return f"{path.name}: {error.message.rstrip('.')}"
    return ""
