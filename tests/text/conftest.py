from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def peer_tokenizer(smollm2_gguf: Path) -> Any:
    """The real tokenizer as transformers reads it from the same file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
