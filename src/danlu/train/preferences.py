"""Rows that compare answers, as ids: {prompt, chosen, rejected}, or {prompt, completion, label}, liked or not.

Prompts and answers are texts or lists of messages; without a prompt, chosen and rejected are whole conversations. Only
the last answer is supervised. A text is a turn of a conversation where the model has a template, else it is continued
as it stands and the answer ends with the model's end token. Knows no method and no loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from danlu.core.errors import DataError, TrainError
from danlu.core.records import Message
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.texts import Encoded


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: RenderedChat
    rejected: RenderedChat
    margin: float = 0.0
    """How much better the chosen one is at least; for reward models."""

    @property
    def answers(self) -> tuple[RenderedChat, ...]:
        """The rows that are read."""
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True)
class Judged:
    """One answer that was liked or not, and another row's answer to the same prompt."""

    answer: RenderedChat
    mismatched: RenderedChat
    """Tells how far the policy has drifted, without regard to what is good."""
    is_desirable: bool

    @property
    def answers(self) -> tuple[RenderedChat, ...]:
        """The rows that are read."""
        return self.answer, self.mismatched

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.answer.ids) + len(self.mismatched.ids)


def encode_pairs(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Encoded[Pair]:
    """Rows of {prompt, chosen, rejected, margin?}.

    Left out: pairs of which one answer is too long with its prompt (``too_long``) or has no token to learn
    (``no_answer``), and pairs of equal answers (``same``). Raises DataError for a row of another form, TrainError when
    none is left.
    """
    encoded = Encoded[Pair]()
    for row in rows:
        chosen, rejected = (encode_answer(row, key, chat) for key in ("chosen", "rejected"))
        margin = row.get("margin") or 0.0
        if not isinstance(margin, int | float):
            raise DataError(f"A row has the margin {margin!r:.80}.", "A margin is a number.")
        reason = "same" if chosen.ids == rejected.ids else _why_not((chosen, rejected), max_tokens)
        if reason:
            encoded.left_out[reason] += 1
        else:
            encoded.items.append(Pair(chosen, rejected, float(margin)))
    return encoded.refuse_none("a prompt and two different answers, chosen and rejected, within max_row_tokens")


def encode_judged(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Encoded[Judged]:
    """Rows of {prompt, completion, label}, or pairs, which make two of these each; left out as in ``encode_pairs``.

    An answer is mismatched with that of the next row that differs and fits. Raises TrainError when all answers are
    the same.
    """
    encoded = Encoded[Judged]()
    kept: list[tuple[Mapping[str, Any], RenderedChat]] = []
    for row in itertools.chain.from_iterable(map(judgements, rows)):
        answer = encode_answer(row, "completion", chat)
        reason = _why_not((answer,), max_tokens)
        if reason:
            encoded.left_out[reason] += 1
        else:
            kept.append((row, answer))
    for place, (row, answer) in enumerate(kept):
        others = (kept[(place + step) % len(kept)][0] for step in range(1, len(kept)))
        swapped = (encode_answer({**row, "completion": other["completion"]}, "completion", chat) for other in others)
        fitting = (one for one in swapped if one.ids != answer.ids and not _why_not((one,), max_tokens))
        mismatched = next(fitting, None)
        if mismatched is None:
            encoded.left_out["no_other_answer"] += 1
        else:
            encoded.items.append(Judged(answer, mismatched, row["label"]))
    return encoded.refuse_none("a prompt, a completion and a label, true or false, within max_row_tokens")


def messages_of(row: Mapping[str, Any], key: str) -> list[Message] | None:
    """A row's prompt and the answer under ``key`` as one conversation; None for two texts."""
    if row.get(key) is None:
        has = ", ".join(name for name, value in row.items() if value is not None) or "(none)"
        raise DataError(f"A row has no {key!r}; it has {has}.", "Mend the rows, or say which column it is (columns).")
    prompt, answer = row.get("prompt"), row.get(key)
    if isinstance(prompt, str) and isinstance(answer, str):
        return None
    return [*_turns(prompt, "user", "prompt"), *_turns(answer, "assistant", key)]


def asked_and_answered(row: Mapping[str, Any], key: str) -> tuple[str, str]:
    """A row's prompt and the answer under ``key`` as two texts. Raises DataError for a row without them."""
    messages = messages_of(row, key)
    if messages is None:
        return row["prompt"], row[key]
    return "\n".join(message["content"] for message in messages[:-1]), messages[-1]["content"]


def judgements(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row as it is, or a pair as a liked answer and one that was not."""
    if "chosen" in row and "rejected" in row:
        prompt = {"prompt": row["prompt"]} if "prompt" in row else {}
        return [{**prompt, "completion": row[key], "label": key == "chosen"} for key in ("chosen", "rejected")]
    if not isinstance(row.get("label"), bool):
        raise DataError(f"A row has the label {row.get('label')!r:.80}.", "Give true for a liked answer, else false.")
    return [row]


def encode_answer(row: Mapping[str, Any], key: str, chat: ChatFormat) -> RenderedChat:
    """Prompt and answer as ids; only the answer is supervised. Raises DataError for a row without them."""
    messages = messages_of(row, key)
    if messages is None and chat.source is None:
        before = chat.tokenizer.encode(row["prompt"])
        if not chat.tokenizer.end_ids:
            raise TrainError("The model has no end token, so answers could not end.", "Name one in eos_token.")
        after = [*chat.tokenizer.encode_rest(row[key]), min(chat.tokenizer.end_ids)]
        return RenderedChat(before + after, [False] * len(before) + [True] * len(after))
    if messages is None:
        messages = [*_turns(row["prompt"], "user", "prompt"), *_turns(row[key], "assistant", key)]
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"A row's {key} ends with a message of the {messages[-1]['role']}.", "End with the assistant's."
        )
    whole = chat.render(messages, add_generation_prompt=False)
    if len(messages) == 1:
        return whole
    asked = chat.render(messages[:-1], add_generation_prompt=True).ids
    begin = next((i for i, (a, b) in enumerate(zip(asked, whole.ids, strict=False)) if a != b), len(asked))
    return RenderedChat(whole.ids, [learnt and place >= begin for place, learnt in enumerate(whole.is_answer)])


def _turns(value: Any, role: str, key: str) -> list[Message]:
    """A text as one message, messages as they are; nothing for a missing prompt."""
    if value is None and key == "prompt":
        return []
    if isinstance(value, str):
        return cast("list[Message]", [{"role": role, "content": value}])
    if not isinstance(value, list) or not value:
        raise DataError(f"A row has {key} {value!r:.80}.", "Give a text, or a list of messages.")
    return conversation({"messages": value})


def _why_not(answers: Sequence[RenderedChat], max_tokens: int) -> str | None:
    if any(len(answer.ids) > max_tokens for answer in answers):
        return "too_long"
    return None if all(any(answer.is_answer[1:]) for answer in answers) else "no_answer"
