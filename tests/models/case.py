"""What a family's parity case is made of: a tiny model of transformers with random weights, and how to ask both.

A ``Case`` says which model of transformers to make; its ``compare`` asks theirs and ours the same and gives one tensor
a row of what has to be equal. Tables of cases are in cases/, the checks in tests/contracts/test_families.py.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from danlu.models.executor import TorchExecutor
from danlu.models.heads.classify import ClassifyHead
from danlu.models.heads.lm import LMHead
from danlu.models.heads.tag import TagHead
from danlu.models.model import Model
from danlu.models.paged import MemoryPages, PagedCache, Segment, num_pages

from .peer import some_ids

Side = Literal["left", "right"]


class Compare(Protocol):
    """Asks both libraries the same: one tensor a row, real places only."""

    def rows(self, case: Case) -> list[Any]:
        """Inputs of several lengths."""
        ...

    def theirs(self, case: Case, peer: PreTrainedModel, rows: Sequence[Any], side: Side) -> list[Tensor]:
        """What transformers answers to these rows in one batch, padded on this side."""
        ...

    def ours(self, model: Model, rows: Sequence[Any]) -> list[Tensor]:
        """What we answer to these rows in one packed batch."""
        ...


class Tokens:
    """One tower on rows of token ids; what is compared is what the head gives, or hidden states without one."""

    def rows(self, case: Case) -> list[list[int]]:
        """Lengths on both sides of a window and of a block."""
        return [some_ids(length, seed=length, vocabulary=case.vocabulary) for length in (7, 1, 19)]

    @torch.no_grad()
    def theirs(self, case: Case, peer: PreTrainedModel, rows: Sequence[list[int]], side: Side) -> list[Tensor]:
        if case.by_length and len(rows) > 1:
            return [answer for row in rows for answer in self.theirs(case, peer, [row], side)]
        longest = max(len(row) for row in rows)
        spare = [longest - len(row) for row in rows]
        before = [count if side == "left" else 0 for count in spare]
        padded = [
            [case.pad] * b + row + [case.pad] * (count - b) for row, count, b in zip(rows, spare, before, strict=True)
        ]
        mask = torch.tensor(
            [[0] * b + [1] * len(row) + [0] * (count - b) for row, count, b in zip(rows, spare, before, strict=True)]
        )
        extra: dict[str, Any] = {}
        if case.position_ids and "position_ids" in inspect.signature(peer.forward).parameters:
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        out = peer(input_ids=torch.tensor(padded), attention_mask=mask, **extra)
        answer = out.logits if hasattr(out, "logits") else out.last_hidden_state
        if answer.dim() == 2:
            return list(answer)
        return [answer[i, b : b + len(row)] for i, (row, b) in enumerate(zip(rows, before, strict=True))]

    @torch.no_grad()
    def ours(self, model: Model, rows: Sequence[list[int]]) -> list[Tensor]:
        network, lengths = model.network, [len(row) for row in rows]
        hidden = network.rows(torch.tensor([i for row in rows for i in row]), lengths)
        head = network.head
        if head is None:
            return list(hidden.split(lengths))
        if isinstance(head, (LMHead, TagHead)):
            return list(head(hidden).split(lengths))
        assert isinstance(head, ClassifyHead)
        return list(head(hidden, lengths))

    def stepped(self, model: Model, rows: Sequence[Any]) -> list[Tensor]:
        """The same, token by token through a cache."""
        return stepped(model, rows)


@torch.no_grad()
def stepped(model: Model, rows: Sequence[list[int]], sources: Sequence[list[int]] | None = None) -> list[Tensor]:
    """Logits of rows that are read into pages: half of each at once, then pieces of one to three tokens: (T, V) a row.

    Pages come in an order of their own. With ``sources`` the rows are what a decoder writes.
    """
    lengths = [len(row) for row in rows]
    each = num_pages(max(lengths))
    order = torch.randperm(each * len(rows), generator=torch.Generator().manual_seed(5)).tolist()
    tables = [order[i * each : (i + 1) * each] for i in range(len(rows))]
    memories: list[MemoryPages | None] = [None] * len(rows)
    if sources is not None:
        memories = [MemoryPages([len(rows) - i - 1], len(source)) for i, source in enumerate(sources)]
    cache = PagedCache(
        model.config.stack, len(order), torch.float32, model.device, num_slots=len(rows), num_memory_pages=len(rows)
    )  # fmt: skip
    executor = TorchExecutor(model, cache)
    if sources is not None:
        executor.remember(sources, [memory for memory in memories if memory is not None])
    found: list[list[Tensor]] = [[] for _ in rows]
    done = [0] * len(rows)
    counts = [(length + 1) // 2 for length in lengths]
    while any(counts):
        chosen = [i for i, count in enumerate(counts) if count]
        segments = [Segment(tables[i], done[i], counts[i], slot=i, memory=memories[i]) for i in chosen]
        ids = [token for i in chosen for token in rows[i][done[i] : done[i] + counts[i]]]
        logits = executor.run(ids, segments, range(len(ids)))
        for i, part in zip(chosen, logits.split([counts[i] for i in chosen]), strict=True):
            found[i].append(part)
            done[i] += counts[i]
        counts = [min(1 + (i + done[i]) % 3, length - done[i]) for i, length in enumerate(lengths)]
    return [torch.cat(parts) for parts in found]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family with one head."""

    config: type[PretrainedConfig]
    """Their config class."""
    peer: type[PreTrainedModel]
    """Their model class."""
    numbers: Mapping[str, Any]
    """Keys of their config: tiny sizes, and whatever this case is about."""
    compare: Compare = field(default_factory=Tokens)
    """How to ask both."""
    vocabulary: int = 100
    """Token ids are below this."""
    pad: int = 0
    """What padding is filled with."""
    position_ids: bool = True
    """Whether theirs must be told positions when rows are padded."""
    atol: float = 1e-4
    """How far answers may be apart."""
    by_length: bool = False
    """Whether positions depend on how long a row has grown: theirs is then asked row by row, and a row that grows has
    another past than one read at once."""
    lora: bool = True
    """Whether peft can put adapters on this model."""
    gguf: bool = False
    """Whether llama.cpp knows this very model, so that it can be written as GGUF and read again."""

    @property
    def decodes(self) -> bool:
        """Whether it is a decoder that continues a row."""
        return isinstance(self.compare, Tokens) and self.peer.__name__.endswith(("ForCausalLM", "LMHeadModel"))

    @property
    def writes(self) -> bool:
        """Whether it writes token by token: a decoder, or the second half of an encoder-decoder."""
        is_pair = self.peer.__name__.endswith(("ForConditionalGeneration", "MTModel"))
        return self.decodes or (isinstance(self.compare, Tokens) and is_pair)

    @property
    def ties(self) -> bool:
        """Whether some of its tensors are one, as transformers says."""
        return bool(self.peer._tied_weights_keys) and self.config(**self.numbers).tie_word_embeddings

    def make(self, seed: int = 0) -> PreTrainedModel:
        """Their model, every weight random: norms that are one and biases that are zero hide mistakes."""
        torch.manual_seed(seed)
        model = self.peer(self.config(**self.numbers)).eval()
        return randomised(model)


@torch.no_grad()
def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter away from where it starts; matrices keep a spread that answers stay apart."""
    for weight in model.parameters():
        if not weight.requires_grad:  # fixed positions
            continue
        if weight.dim() < 2:
            start = 1.0 if bool((weight == 1).all()) else 0.0
            weight.copy_(start + 0.3 * torch.randn_like(weight))
        else:
            inputs = weight.numel() ** 0.5 if weight.dim() == 2 else weight[0].numel()
            weight.copy_(torch.randn_like(weight) / inputs**0.5)
    return model


def save_peer(model: PreTrainedModel, folder: Path) -> Path:
    """A folder as transformers writes it, no tokenizer."""
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Put other values into config.json; None takes a key out."""
    path = folder / "config.json"
    theirs = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in theirs.items() if value is not None}))
