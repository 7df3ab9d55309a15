"""Generation: how logits become tokens and tokens become text, and the plain sampler everything else is held to.

``Writing`` is one answer in the making; the engine uses it too. ``ReferenceModel`` is the simplest correct way to
generate (a batch starts together and ends together) and one of the three implementations of ``LanguageModel``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, FinishReason, GenerateOptions, OnAdvance, Prompt, Score, Usage
from danlu.models.attention import DecodeAttend, PackedAttend, PrefillAttend, row_positions, shared_prefix
from danlu.models.cache import KVCache
from danlu.models.heads.lm import Decoder
from danlu.models.load import Model
from danlu.text.tokenizer import TextStream, TextTokenizer

REFERENCE_BATCH = 16
"""Prompts the reference sampler runs together."""


class Writing:
    """One answer in the making: its tokens so far, its text, and when it ends. Knows nothing of batches."""

    def __init__(
        self, prompt_ids: Sequence[int], options: GenerateOptions, tokenizer: TextTokenizer, context_length: int
    ) -> None:
        if not prompt_ids:
            raise RequestError("The prompt is empty.", "Send at least one token.", param="prompt")
        if len(prompt_ids) >= context_length:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens; the model's context is {context_length}, answer included.",
                "Shorten the prompt.",
                code="context_length_exceeded",
            )
        self.prompt_ids = list(prompt_ids)
        self.options = options
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.limit = min(options.max_tokens, context_length - len(prompt_ids))
        seed = random.getrandbits(63) if options.seed is None else options.seed
        self.generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        self._end_ids = tokenizer.end_ids
        self._stream = TextStream(tokenizer)
        self._held = ""  # text that may turn out to begin a stop string

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=len(self.token_ids))

    def push(self, token_id: int) -> Delta:
        """Take the next token; returns the text that became certain. The last delta carries reason and usage."""
        self.token_ids.append(token_id)
        if token_id in self._end_ids:
            return self._finish("stop", self._held + self._stream.finish())
        self._held += self._stream.push(token_id)
        if (cut := self._find_stop()) is not None:
            return self._finish("stop", self._held[:cut])
        if len(self.token_ids) >= self.limit:
            self._held += self._stream.finish()
            cut = self._find_stop()
            return self._finish("length" if cut is None else "stop", self._held[:cut])
        safe = len(self._held) - self._stop_overlap()
        piece, self._held = self._held[:safe], self._held[safe:]
        self.text += piece
        return Delta(text=piece)

    def abort(self) -> Delta:
        """End here."""
        return self._finish("abort", self._held)

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text, finish_reason=self.finish_reason, usage=self.usage, token_ids=tuple(self.token_ids)
        )

    def _finish(self, reason: FinishReason, text: str) -> Delta:
        self.finish_reason = reason
        self.text += text
        return Delta(text=text, finish_reason=reason, usage=self.usage)

    def _find_stop(self) -> int | None:
        """Where the first stop string begins in the text not yet given out."""
        found = [at for stop in self.options.stop if (at := self._held.find(stop)) >= 0]
        return min(found) if found else None

    def _stop_overlap(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = 0
        for stop in self.options.stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest


def pick_tokens(logits: Tensor, writings: Sequence[Writing]) -> list[int]:
    """Next token of each row. logits: (B, V). Each row draws from its own generator, so batches do not matter."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, writing in enumerate(writings):
        if writing.options.temperature > 0.0:
            tokens[row] = _draw(logits[row].float().cpu(), writing.options, writing.generator)
    return tokens


def _draw(logits: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """One sample after temperature, top-k and top-p (nucleus; Holtzman et al. 2020). logits: (V,)."""
    scaled = logits / max(options.temperature, 1e-4)
    if 0 < options.top_k < scaled.shape[0]:
        lowest = torch.topk(scaled, options.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < lowest, float("-inf"))
    probabilities = torch.softmax(scaled, dim=-1)
    if options.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= options.top_p
        # drawn in the order of tokens, not of ranks: two nearly equal tokens may swap ranks from batch to batch
        probabilities = probabilities.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def read_prompts(decoder: Decoder, prompts: Sequence[list[int]], cache: KVCache, first: int) -> Tensor:
    """Read prompts into rows ``first``… of a cache, in one packed pass; what they all begin with is read once.

    Returns the hidden state of each prompt's last token: (B, D).
    """
    shared = shared_prefix(prompts)
    lengths = [len(prompt) - shared for prompt in prompts]
    ids = torch.tensor([*prompts[0][:shared], *(i for p in prompts for i in p[shared:])], device=cache.device)
    positions = row_positions(lengths, shared).to(cache.device)
    hidden = decoder(ids, positions, PrefillAttend(cache, first, lengths, shared))
    return hidden[torch.tensor(lengths, device=cache.device).cumsum(0) + (shared - 1)]


class ReferenceModel:
    """A loaded model that generates, streams and scores."""

    def __init__(self, model: Model, name: str = "model") -> None:
        self.model = model
        self.name = name

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        """Answers in the order of ``prompts``."""
        options = options or GenerateOptions()
        writings = [self._start(prompt, options) for prompt in prompts]
        for first in range(0, len(writings), REFERENCE_BATCH):
            batch = writings[first : first + REFERENCE_BATCH]
            for _ in self._run(batch):
                pass
            if on_advance is not None:
                on_advance(len(batch))
        return [writing.completion() for writing in writings]

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece."""
        for delta in self._run([self._start(prompt, options or GenerateOptions())]):
            if delta.text or delta.finish_reason:
                yield delta

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
        return score_texts(self.model, prompts, continuations)

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits at every position. ids: (B, T) → (B, T, V)."""
        rows, length = ids.shape
        with torch.inference_mode():
            hidden = self.model.decoder(
                ids.flatten(), row_positions([length] * rows).to(ids.device), PackedAttend([length] * rows, ids.device)
            )
            return self.model.decoder.logits(hidden).view(rows, length, -1)

    def _start(self, prompt: Prompt, options: GenerateOptions) -> Writing:
        chat = self.model.chat
        return Writing(chat.prompt_ids(prompt), options, chat.tokenizer, self.model.config.context_length)

    def _run(self, writings: Sequence[Writing]) -> Iterator[Delta]:
        """Write all to the end, in step; yields the deltas of every row (a stream has one row)."""
        decoder, device = self.model.decoder, self.model.decoder.stack.norm.weight.device
        room = max(len(w.prompt_ids) + w.limit for w in writings)
        with torch.inference_mode():
            cache = KVCache(decoder.config, len(writings), room, self.model.activation_dtype, device)
            hidden = read_prompts(decoder, [w.prompt_ids for w in writings], cache, 0)
        filled = torch.tensor([len(w.prompt_ids) for w in writings], device=device)
        while True:
            with torch.inference_mode():
                tokens = pick_tokens(decoder.logits(hidden), writings)
            for writing, token in zip(writings, tokens, strict=True):
                if writing.finish_reason is None:
                    yield writing.push(token)
            if all(w.finish_reason for w in writings):
                return
            with torch.inference_mode():
                filled = filled.clamp(max=room - 1)  # rows already finished stay where they are
                ids = torch.tensor(tokens, device=device)
                hidden = decoder(ids, filled, DecodeAttend(cache, filled))
                filled = filled + 1


def score_texts(model: Model, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
    """Log-likelihood in nats of each continuation after its prompt, tokens of the prompt not counted.

    The continuation's tokens are made apart from the prompt's, as they would be written.
    """
    scores: list[Score] = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        start, answer = model.chat.prompt_ids(prompt), model.chat.tokenizer.encode(continuation)
        if not start or not answer:
            raise RequestError("Prompt and continuation must both have at least one token.", "Send some text.")
        ids = [*start, *answer]
        if len(ids) > model.config.context_length:
            raise RequestError(
                f"Prompt and continuation have {len(ids)} tokens; the context is {model.config.context_length}.",
                "Shorten them.",
                code="context_length_exceeded",
            )
        with torch.inference_mode():
            device = model.decoder.stack.norm.weight.device
            hidden = model.decoder(
                torch.tensor(ids, device=device), row_positions([len(ids)]).to(device), PackedAttend([len(ids)], device)
            )
            logits = model.decoder.logits(hidden[len(start) - 1 : -1]).float()  # (M, V)
            targets = torch.tensor(answer, device=device)
            logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
            greedy = bool((logits.argmax(dim=-1) == targets).all())
        values = tuple(logprobs.tolist())
        scores.append(
            Score(logprob=sum(values), num_tokens=len(values), is_greedy=greedy, token_logprobs=values)
        )  # fmt: skip
    return scores
