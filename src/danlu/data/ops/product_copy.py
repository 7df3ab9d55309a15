"""product_copy: turns a review into an instruction pair, title + class + attributes → product copy.

The copy is made of the review's own sentences that describe the product (data/sentences); the attributes given are
those the copy mentions (text/lexicon), so that the pair teaches to state what is given and to invent nothing. Drops
every row that yields no such pair, with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from danlu.core.errors import ConfigError
from danlu.data import sentences
from danlu.data.pipeline import Applied, Operator, set_text, texts
from danlu.data.words import is_chinese
from danlu.text import lexicon


@dataclass(frozen=True, kw_only=True)
class ProductCopyConfig:
    """What counts as copy worth learning from."""

    min_rating: float = 4.0
    """Reviews rated lower are left out, since copy recommends; rows without a rating pass."""
    min_attributes: int = 2
    """Fewest attributes that the copy must mention."""
    min_words: int = 10
    """Fewest words (Latin) or characters (Han) of the copy."""
    max_words: int = 60
    """Most words or characters of the copy; sentences with fewer attributes are left out first."""
    min_sentence_words: int = 4
    """Shorter sentences are passed over."""
    max_sentence_words: int = 40
    """Longer sentences are passed over."""
    require_title: bool = True
    """Drop rows without a title; otherwise the class alone leads the prompt."""
    cut_length: int = 490
    """Texts this long (characters) without a final mark were cut off at the source: their last sentence goes."""

    def __post_init__(self) -> None:
        if not 0 < self.min_words <= self.max_words:
            raise ConfigError(
                f"min_words is {self.min_words}, max_words {self.max_words}.", "Use 1 <= min_words <= max_words."
            )


def choose_copy(text: str, config: ProductCopyConfig) -> tuple[str, str]:
    """The copy taken from a text, and why there is none ("" when there is one)."""
    chosen = [
        sentences.tidy(sentence)
        for sentence in sentences.about_product(text, limit=config.cut_length)
        if config.min_sentence_words <= sentences.length(sentence) <= config.max_sentence_words
    ]
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        return "", "no_product_sentences"
    copy = sentences.join(_within(chosen, config.max_words))
    if sum(map(len, lexicon.find(copy).values())) < config.min_attributes:
        return "", "too_few_attributes"
    return (copy, "") if sentences.length(copy) >= config.min_words else ("", "copy_too_short")


def _within(chosen: list[str], max_words: int) -> list[str]:
    """The sentences that fit into ``max_words``, those with most attributes first, in their own order."""
    if sum(map(sentences.length, chosen)) <= max_words:
        return chosen
    richness = [sum(map(len, lexicon.find(sentence).values())) for sentence in chosen]
    kept: set[int] = set()
    room = max_words
    for i in sorted(range(len(chosen)), key=lambda i: (-richness[i], i)):
        if sentences.length(chosen[i]) <= room:
            kept.add(i)
            room -= sentences.length(chosen[i])
    return [chosen[i] for i in sorted(kept)]


def write_prompt(title: str, class_name: str, attributes: dict[str, list[str]], *, chinese: bool) -> str:
    """The user's message. Short, because every token of it is paid for in each training step."""
    labels, comma, colon = (_ZH_LABELS, "、", "：") if chinese else (_EN_LABELS, ", ", ": ")
    lines = [labels["task"]]
    given = {"title": title, "class": class_name, **{key: comma.join(values) for key, values in attributes.items()}}
    lines += [f"{labels[key]}{colon}{value}" for key, value in given.items() if value]
    return "\n".join(lines)


def apply(table: pa.Table, config: ProductCopyConfig) -> Applied:
    """Add the columns ``prompt``, ``copy`` and ``attributes`` (JSON); rows without a pair are marked."""
    num_rows = table.num_rows
    ratings = table.column("rating").to_pylist() if "rating" in table.column_names else [None] * num_rows
    titles = texts(table, "title") if "title" in table.column_names else [""] * num_rows
    classes = texts(table, "class") if "class" in table.column_names else [""] * num_rows
    prompts, copies, attributes = [""] * num_rows, [""] * num_rows, ["{}"] * num_rows
    reasons: list[str | None] = [None] * num_rows
    details: list[str | None] = [None] * num_rows
    for i, text in enumerate(texts(table, "text")):
        if ratings[i] is not None and ratings[i] < config.min_rating:
            reasons[i], details[i] = "low_rating", f"{ratings[i]:g}"
        elif config.require_title and not titles[i]:
            reasons[i] = "no_title"
        else:
            copies[i], reason = choose_copy(text, config)
            reasons[i] = reason or None
            given = lexicon.find(copies[i])
            attributes[i] = json.dumps(given, ensure_ascii=False)
            prompts[i] = write_prompt(titles[i], classes[i], given, chinese=is_chinese(copies[i]))
    for name, values in (("prompt", prompts), ("copy", copies), ("attributes", attributes)):
        table = set_text(table, name, values)
    return Applied(table=table, reasons=reasons, details=details)


_EN_LABELS = {
    "task": "Write product copy.",
    "title": "Title",
    "class": "Class",
    "material": "Material",
    "size": "Size",
    "fit": "Fit",
    "colour": "Colour",
    "occasion": "Occasion",
}
_ZH_LABELS = {
    "task": "写商品文案。",
    "title": "标题",
    "class": "类别",
    "material": "材质",
    "size": "尺码",
    "fit": "版型",
    "colour": "颜色",
    "occasion": "场合",
}

plugin = Operator(name="product_copy", version=1, scope="rows", config_type=ProductCopyConfig, apply=apply)
