"""One answer in the making. Knows no model and nothing of batches; the engine uses it too."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import torch

from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, FinishReason, GenerateOptions, TokenLogprob, Usage
from danlu.models.defaults import GenerationDefaults
from danlu.models.steering import Steering
from danlu.text.tokenizer import TextStream, TextTokenizer

_SEED_STEP = 0x9E3779B97F4A7C15
"""Seeds of several samples of one request lie this far apart."""
_NOTHING = Delta(text="")


class Writing:
    """An answer's tokens so far, its text, and when it ends."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerateOptions,
        tokenizer: TextTokenizer | None,
        context_length: int,
        *,
        defaults: GenerationDefaults | None = None,
        source_ids: Sequence[int] | None = None,
        sample: int = 0,
        shown: Collection[str] = (),
    ) -> None:
        """``prompt_ids`` stand before the answer. With ``source_ids`` an encoder reads those, and the prompt is the one
        token an answer starts with. ``sample`` tells the answers of one request apart. ``shown`` are special
        tokens that the text has all the same. Without a tokenizer there is no
        text, only ids. Raises RequestError for a prompt that leaves no room."""
        read = prompt_ids if source_ids is None else source_ids
        if not read:
            raise RequestError("The prompt is empty.", "Send at least one token.", param="prompt")
        if len(prompt_ids) >= context_length:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens; the model's context is {context_length}, answer included.",
                "Shorten the prompt.",
                code="context_length_exceeded",
            )
        if options.stop and tokenizer is None:
            raise RequestError("stop is given, but this model has no tokenizer.", "Use stop_token_ids.", param="stop")
        self.prompt_ids = list(prompt_ids)
        self.source_ids = None if source_ids is None else list(source_ids)
        self.options = options
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.limit = min(options.max_tokens, context_length - len(prompt_ids))
        self.cached_tokens = 0
        """Tokens of the prompt that did not have to be read; whoever reads it says so."""
        seed = random.getrandbits(63) if options.seed is None else options.seed + sample * _SEED_STEP
        self.generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        ends = frozenset() if tokenizer is None else tokenizer.end_ids
        defaults = (defaults or GenerationDefaults()).with_end_ids(ends)
        self.steering = Steering(
            options, defaults, prompt_ids, self.limit, is_answer_alone=source_ids is not None
        )  # fmt: skip
        self.is_plain = self.steering.is_idle and options.temperature == 0.0 and options.logprobs is None
        """Whether the likeliest token is all that is asked for."""
        self._tokenizer, self._context_length, self._defaults = tokenizer, context_length, defaults
        self._stream = None if tokenizer is None else TextStream(tokenizer, shown)
        self._held = ""  # text that may turn out to begin a stop string
        self._sample, self._told, self._shown = sample, 0, shown

    @property
    def num_tokens(self) -> int:
        """What a decoder holds of it: prompt and answer together."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        read = self.prompt_ids if self.source_ids is None else self.source_ids
        return Usage(prompt_tokens=len(read), completion_tokens=len(self.token_ids), cached_tokens=self.cached_tokens)

    def again(self, sample: int = 0) -> Writing:
        """The same request with nothing written; ``sample`` tells the answers of one request apart."""
        return Writing(
            self.prompt_ids,
            self.options,
            self._tokenizer,
            self._context_length,
            defaults=self._defaults,
            source_ids=self.source_ids,
            sample=sample,
            shown=self._shown,
        )

    def push(self, token_id: int, *, is_complete: bool = False) -> Delta:
        """Take the next token; returns the text that became certain. The last delta carries reason and usage.

        ``is_complete`` says that nothing can follow this token (what its grammar asks for is there).
        """
        self.token_ids.append(token_id)
        is_full = len(self.token_ids) >= self.limit
        if token_id in self.steering.end_ids:
            was_forced = is_full and token_id in self.steering.last
            return self._finish("length" if was_forced else "stop", self._held + self._rest())
        if self._stream is not None:
            self._held += self._stream.push(token_id)
        if (cut := self._find_stop()) is not None:
            return self._finish("stop", self._held[:cut])
        if is_full or is_complete:
            self._held += self._rest()
            cut = self._find_stop()
            return self._finish("length" if cut is None and not is_complete else "stop", self._held[:cut])
        safe = len(self._held) - self._stop_overlap()
        piece, self._held = self._held[:safe], self._held[safe:]
        self.text += piece
        if not piece and self.options.logprobs is None:
            return _NOTHING
        return Delta(
            text=piece, logprobs=tuple(self.logprobs[-1:]), index=self._sample, token_ids=self._untold()
        )  # fmt: skip

    def abort(self) -> Delta:
        """End here."""
        return self._finish("abort", self._held)

    def completion(self, score: float | None = None) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=self.usage,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            score=score,
        )

    def _rest(self) -> str:
        return "" if self._stream is None else self._stream.finish()

    def _finish(self, reason: FinishReason, text: str) -> Delta:
        self.finish_reason = reason
        self.text += text
        last = () if reason == "abort" else tuple(self.logprobs[-1:])
        return Delta(
            text=text,
            finish_reason=reason,
            usage=self.usage,
            logprobs=last,
            index=self._sample,
            token_ids=self._untold(),
        )

    def _untold(self) -> tuple[int, ...]:
        """The tokens since the last piece."""
        ids, self._told = tuple(self.token_ids[self._told :]), len(self.token_ids)
        return ids

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
