"""Models from the Hugging Face hub, through ``huggingface_hub`` and its cache. Knows no torch and no model family.

Only what a model is made of is fetched: configs, safetensors, tokenizers, templates, its card and licence. Never code,
never pickles. Without a network, or with HF_HUB_OFFLINE=1, what the cache holds is used.
"""

from __future__ import annotations

import re
from pathlib import Path

from danlu.core.errors import FetchError, ModelError

FETCHED = (
    "*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja", "README.md", "LICEN[CS]E*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip
"""Patterns of files that are fetched."""
_LEFT_OUT = ("original/*", "onnx/*", "openvino/*")
"""The same model again in forms that are not read."""
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def is_hub_id(text: str) -> bool:
    """Whether a text looks like "owner/name" or "owner/name@revision"; it may still be a path."""
    return _ID.fullmatch(text) is not None and not text.endswith((".gguf", ".json"))


def fetch_model(text: str) -> Path:
    """The folder of a hub model in huggingface_hub's cache, fetched if need be.

    ``text`` is "owner/name", or "owner/name@revision" with a branch, tag or commit. Raises ModelError when
    huggingface_hub is not installed, FetchError when the hub has no such model or cannot be reached.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise ModelError(f"{text!r} is no hub id.", "Write owner/name, or owner/name@revision.")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{text} is neither here nor in the store, and to look on the Hugging Face hub a package is missing.",
            "pip install 'danlu[hub]'",
        ) from error
    name, revision = found[1], found[2]
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(_LEFT_OUT)
        )
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{name} is given only to those who accepted its terms.",
            f"Accept them at huggingface.co/{name}, then `hf auth login`.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"{name} has no revision '{revision}'.", "Leave it out for the newest.") from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"There is no folder {name} here, no such alias, and no public model of that name on the hub.",
            "Check the spelling; for a private model, `hf auth login` first.",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        first = str(error).strip().partition("\n")[0][:200].rstrip(".")
        raise FetchError(
            f"{name} is not (wholly) in the cache of the Hugging Face hub, which cannot be reached now: {first}.",
            "Go online once (HF_HUB_OFFLINE=0), or give a folder of the model.",
        ) from error
    return Path(folder)
