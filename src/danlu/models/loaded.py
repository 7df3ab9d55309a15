"""What ``danlu.load`` returns: one model and everything its head allows, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, OnAdvance, Score
from danlu.models import encode, generate, recommend
from danlu.models.attend import Memory, PackedAttend, row_positions
from danlu.models.encode import LabelScore, Text
from danlu.models.generate import AnyPrompt
from danlu.models.heads.classify import ClassifyHead
from danlu.models.heads.embed import EmbedHead
from danlu.models.heads.lm import LMHead
from danlu.models.heads.rank import RankHead
from danlu.models.heads.tag import TagHead
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.recommend import Recommendation
from danlu.models.spans import Span


class LoadedModel:
    """A model in memory. Methods that its head does not allow raise ModelError and say what it has."""

    def __init__(self, model: Model, name: str = "model") -> None:
        self.model = model
        self.name = name

    @property
    def reads_sources(self) -> bool:
        """Whether it is an encoder-decoder: a prompt is then a source, and the answer a target."""
        return isinstance(self.model.network, EncoderDecoder)

    def logits(self, ids: Tensor, mask: Tensor | None = None, *, targets: Tensor | None = None) -> Tensor:
        """What the head says of token ids (B, T): (B, T, V) of language models and taggers, (B, C) of classifiers.

        ``mask`` (B, T) is 1 for real tokens, 0 for padding, on either side; padding comes back as zeros. An
        encoder-decoder reads ``ids`` and is asked at each of ``targets`` (B, U), which begin with its start token:
        (B, U, V).
        """
        network = self.model.network
        head = network.head
        with torch.inference_mode():
            if isinstance(network, EncoderDecoder):
                return network.logits(self._decoded(network, ids, mask, targets))
            if isinstance(head, (LMHead, TagHead)):
                real = _real(ids, mask)
                found = head(network.rows(ids[real], real.sum(dim=1).tolist()))
                return found.new_zeros(*ids.shape, found.shape[-1]).index_put((real,), found)
            if isinstance(head, ClassifyHead):
                real = _real(ids, mask)
                lengths = real.sum(dim=1).tolist()
                return head(network.rows(ids[real], lengths), lengths)
        name = generate.head_name(self.model)
        raise ModelError(f"This model gives no logits: it has {name}.", "Use hidden or embed.")

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, (B, T) → (B, T, D); of an encoder-decoder, those of its encoder."""
        network = self.model.network
        if isinstance(network, EncoderDecoder):
            real = _real(ids, mask)
            with torch.inference_mode():
                found = network.encoder.rows(ids[real], real.sum(dim=1).tolist())
                return found.new_zeros(*ids.shape, found.shape[-1]).index_put((real,), found)
        return encode.hidden_states(self.model, ids, mask)

    def generate(
        self,
        prompts: Sequence[AnyPrompt],
        options: GenerateOptions | None = None,
        on_advance: OnAdvance | None = None,
    ) -> list[Completion]:
        """Answers in the order of ``prompts``, ``options.n`` of each: texts are continued, conversations answered,
        sources of encoder-decoders translated or summed up."""
        return generate.generate(self.model, prompts, options or GenerateOptions(), on_advance)

    def stream(self, prompt: AnyPrompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece."""
        return generate.stream(self.model, prompt, options or GenerateOptions())

    def score(self, prompts: Sequence[AnyPrompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt, or of each target of a source."""
        return generate.score(self.model, prompts, continuations)

    def own_options(self, **changes: Any) -> GenerateOptions:
        """The settings that the model's makers chose (generation_config.json), with ``changes``: beams, penalties, …

        ``generate`` never uses them unasked. Raises ModelError for a setting that danlu does not have.
        """
        return self.model.generation.options(prompt_tokens=1 if self.reads_sources else 0, **changes)

    def embed(self, texts: Sequence[str], *, prompt: str | None = None) -> Tensor:
        """A vector for each text: fp32 (B, P). ``prompt`` names one of the model's own ("query", "passage")."""
        self._needs(EmbedHead, "embeds no text")
        return encode.embed(self.model, texts, prompt=prompt)

    def classify(self, texts: Sequence[Text]) -> list[list[LabelScore]]:
        """All labels of each text or pair of texts, the most likely first."""
        self._needs(ClassifyHead, "classifies no text")
        return encode.classify(self.model, texts)

    def tag(self, texts: Sequence[str]) -> list[list[Span]]:
        """The labelled spans of each text."""
        self._needs(TagHead, "tags no words")
        return encode.tag(self.model, texts)

    def recommend(
        self, histories: Sequence[Sequence[str]], count: int = 10, *, with_seen: bool = False
    ) -> list[list[Recommendation]]:
        """The ``count`` items that come next most likely after each history, oldest first in it; none that is in it
        already unless ``with_seen``."""
        self._needs(RankHead, "recommends nothing")
        return recommend.recommend(self.model, histories, count, with_seen=with_seen)

    def _needs(self, kind: type[nn.Module], lacks: str) -> None:
        if not isinstance(self.model.network.head, kind):
            raise ModelError(
                f"This model {lacks}: it has {generate.head_name(self.model)}.",
                f"Load a model with a head of kind {kind.__name__.removesuffix('Head')}.",
            )

    def _decoded(
        self, network: EncoderDecoder, ids: Tensor, mask: Tensor | None, targets: Tensor | None
    ) -> Tensor:  # fmt: skip
        """Hidden states of the decoder: (B, U, D)."""
        if targets is None:
            raise RequestError(
                "This model reads a source and writes a target.",
                "Give targets (B, U), each beginning with the start token.",
            )
        generate.check_writes(self.model)
        real = _real(ids, mask)
        memory: Memory = network.encode(ids[real], real.sum(dim=1).tolist())
        lengths = [targets.shape[1]] * targets.shape[0]
        positions = row_positions(lengths).to(ids.device)
        return network(targets.flatten(), positions, PackedAttend(lengths, ids.device, memory=memory)).view(
            *targets.shape, -1
        )


def _real(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens are real: bool (B, T)."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if real.shape != ids.shape:
        raise RequestError(f"ids are {tuple(ids.shape)}, mask is {tuple(real.shape)}.", "Give them one shape.")
    if not bool(real.any(dim=1).all()):
        raise RequestError("A row has no real token.", "Leave empty rows out.")
    return real
