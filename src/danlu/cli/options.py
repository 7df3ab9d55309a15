"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Home = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
"""Where artifacts and runs are kept."""
