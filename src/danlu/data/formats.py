"""Rows as people have them → rows as stages read them, by task: chats of every common form, labels, pairs.

A column may be renamed first. What is not understood is an error that names the columns a row has. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from danlu.core.errors import DataError

Row = dict[str, Any]
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_ASKS = ("prompt", "question", "query", "instruction")
_ANSWERS = ("completion", "response", "answer", "output", "target")
_TEXTS = ("text", "sentence", "content", "review")
_LABELS = ("label", "labels", "category", "class", "sentiment")


def as_chat(row: Mapping[str, Any]) -> Row:
    """messages, or ShareGPT's conversations, or Alpaca's instruction/input/output, or a prompt and its answer."""
    if isinstance(row.get("messages"), list):
        return {"messages": row["messages"]}
    if isinstance(row.get("conversations"), list):
        return {"messages": _with_system(row, [_turn(turn) for turn in row["conversations"]])}
    ask, answer = _first(row, _ASKS), _first(row, _ANSWERS)
    if ask is None or answer is None:
        raise _unknown(row, "messages, conversations, instruction and output, or prompt and response")
    more = row.get("input")
    question = f"{row[ask]}\n\n{more}" if isinstance(more, str) and more.strip() else str(row[ask])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": str(row[answer])}]
    return {"messages": _with_system(row, turns)}


def as_labelled(row: Mapping[str, Any]) -> Row:
    """text (or image) and label; a second text as text_pair; a score instead of a label."""
    text = "image" if "image" in row else _first(row, _TEXTS)
    label = "score" if "score" in row else _first(row, _LABELS)
    if text is None or label is None:
        raise _unknown(row, "text (or image) and label")
    pair = {"text_pair": row["text_pair"]} if "text_pair" in row else {}
    return {
        "image" if text == "image" else "text": row[text],
        **pair,
        "score" if label == "score" else "label": row[label],
    }


def as_source_target(row: Mapping[str, Any]) -> Row:
    """source and target; or a document and its summary."""
    source = _first(row, ("source", "document", "article", *_TEXTS))
    target = _first(row, ("target", "summary", "translation", *_ANSWERS))
    if source is None or target is None:
        raise _unknown(row, "source and target")
    return {"source": row[source], "target": row[target]}


def as_text(row: Mapping[str, Any]) -> Row:
    """text alone."""
    text = _first(row, _TEXTS)
    if text is None:
        raise _unknown(row, "text")
    return {"text": row[text]}


def as_it_is(row: Mapping[str, Any]) -> Row:
    """Every column: stages say themselves what they need."""
    return dict(row)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Row]] = {
    "sft": as_chat,
    "classify": as_labelled,
    "seq2seq": as_source_target,
    "pretrain": as_text,
}
"""By training stage; all others read rows as they are."""


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """The row with our names for its columns: ``columns`` is ours → theirs."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise DataError(f"A row has no column '{missing[0]}'.", f"It has {', '.join(row)}.")
    theirs = set(columns.values())
    return {
        **{name: value for name, value in row.items() if name not in theirs},
        **{our: row[their] for our, their in columns.items()},
    }


def _turn(turn: Any) -> dict[str, str]:
    role = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, Mapping) else None
    if role not in _ROLES or not isinstance(text, str):
        raise DataError(f"A conversation has the turn {turn!r:.80}.", f"from is one of {', '.join(_ROLES)}.")
    return {"role": _ROLES[role], "content": text}


def _with_system(row: Mapping[str, Any], turns: list[dict[str, str]]) -> list[dict[str, str]]:
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[:1] and turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    return turns


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _unknown(row: Mapping[str, Any], wanted: str) -> DataError:
    has = ", ".join(name for name, value in row.items() if value is not None) or "(none)"
    how = "columns: {ours: yours} in a recipe, --columns ours=yours on the command line"
    return DataError(f"A row has the columns {has}.", f"Give {wanted}, or say which of yours they are ({how}).")
