"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, in vLLM's shape.

Loads nothing itself: it tells the engine of a folder, once it is sure that the folder lies where adapters may lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.serve.engine.request import AdapterRequest

AdapterName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$")]


class LoadBody(Struct, kw_only=True):
    """POST /v1/load_lora_adapter."""

    lora_name: AdapterName
    lora_path: Annotated[str, Meta(min_length=1, max_length=1024)]
    base_model_name: str | None = None
    load_inplace: bool | None = None

    def to_request(self, root: Path) -> AdapterRequest:
        """The same for the engine; RequestError for a folder outside ``root``."""
        if "\0" in self.lora_path:
            raise RequestError("lora_path has a zero byte.", "Name a folder.", param="lora_path")
        inside = root.resolve()
        folder = (inside / self.lora_path).resolve()
        if not folder.is_relative_to(inside) or not folder.is_dir():
            raise RequestError(
                f"lora_path {self.lora_path[:100]!r} is no folder among the server's adapters.",
                "Put it into the server's adapter_root, and name it from there.",
                param="lora_path",
            )
        return AdapterRequest(
            action="load", name=self.lora_name, folder=str(folder), model=self.base_model_name or ""
        )  # fmt: skip


class UnloadBody(Struct, kw_only=True):
    """POST /v1/unload_lora_adapter."""

    lora_name: AdapterName

    def to_request(self) -> AdapterRequest:
        """The same for the engine."""
        return AdapterRequest(action="unload", name=self.lora_name)
