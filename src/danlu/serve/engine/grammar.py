"""A client's schema, expression or grammar becomes one automaton over a model's tokens, under bounds, or a clear error.

Compiled where the request is submitted, never in the engine's loop. Knows nothing of sampling, requests or HTTP.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from danlu.core.errors import RequestError
from danlu.serve.engine.request import Grammar
from danlu.text.json_schema import parse_schema
from danlu.text.token_bytes import token_bytes
from danlu.text.tokenizer import TextTokenizer
from danlu.text.tool_formats import MARKERS
from danlu.text.tool_grammar import TOOL_GRAMMAR

_WHITE_SPACE = (
    r"( |\n{1,2}[ \t]{0,20})"  # between the parts of JSON: enough to indent, too little to write nothing else
)
_LEAD = "LEAD: /[ \\n\\t]{1,8}/\n"  # white space between a trigger and what follows it
_PARAMS = {
    "json_object": "response_format", "json_schema": "response_format", "regex": "structured_outputs.regex",
    "lark": "structured_outputs.grammar", "choice": "structured_outputs.choice",
}  # fmt: skip
_MARKER = re.compile(r'<@"([^"\n]*)">')
_UP_TO = re.compile(r'(?m)^(\w+): <@\.\.\."([^"\n]*)">$')


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """How much work one grammar may be."""

    max_bytes: int = 65_536
    """Longest text of an expression, and of all choices together."""
    max_lark_bytes: int = 524_288
    """Longest grammar in Lark's notation: that of many tools holds the schemas of all of them."""
    timeout_s: float = 10.0
    """Longest time that a request waits for its grammar."""
    max_states: int = 50_000
    """Most states of the automaton that reads tokens; a state takes about 2 kB."""
    compile_fuel: int = 1_000_000
    """Work for building the automaton; about 20 microseconds for each thousand."""
    step_fuel: int = 200_000
    """Work for one token of an answer; about 70 microseconds for each thousand."""
    max_cached: int = 64
    """Grammars that are kept ready for the next request."""


class GrammarVocabulary:
    """What every token of a model stands for, as grammars need it."""

    def __init__(self, tokenizer: TextTokenizer, pieces: Sequence[bytes]) -> None:
        self.size = len(pieces)
        """Tokens of the tokenizer: a row of logits may be longer, and what is over is never allowed."""
        self.marker_ids = {name: tokenizer.special_ids[name] for name in MARKERS if name in tokenizer.special_ids}
        """Special tokens that tool calls are made of."""
        names = {index: name.encode() for name, index in tokenizer.special_ids.items()}
        self.pieces = list(pieces)
        for name, index in self.marker_ids.items():
            self.pieces[index] = name.encode()
        tokens = [names.get(index, piece) for index, piece in enumerate(pieces)]
        ends = sorted(tokenizer.end_ids)
        if not ends:  # nothing can end an answer but its completeness; the library wants an end all the same
            ends, tokens = [len(tokens)], [*tokens, b"<end of text>"]
        self.num_words = (len(tokens) + 31) // 32
        special = sorted({*names, *ends})
        self._never = frozenset(special) - set(ends) - set(self.marker_ids.values())
        self._ordinary = np.full(self.num_words, -1, np.int32)
        for index in self._never:
            self._ordinary[index // 32] &= ~np.int32(np.uint32(1 << index % 32).view(np.int32))
        wrapped = _Tokens(tokens, special, ends[0], tokenizer, self.pieces)
        self._json = LLTokenizer(wrapped, eos_token=ends, slices=LLTokenizer.json_slices())  # pyright: ignore
        self._cache: OrderedDict[tuple[str, str, bool], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def of(tokenizer: TextTokenizer) -> GrammarVocabulary:
        """The tokenizer's own, built once. Raises RequestError for tokenizers that keep no spaces (WordPiece)."""
        with _BUILDING:
            known = _VOCABULARIES.get(tokenizer)
            if known is None:
                pieces = token_bytes(tokenizer)
                if pieces is None:
                    raise RequestError(
                        "The tokenizer of this model does not tell where words are joined, so its answers cannot "
                        "follow a grammar.", "Leave out response_format, structured outputs and tools, or use another "
                        "model.", param="response_format",
                    )  # fmt: skip
                known = _VOCABULARIES[tokenizer] = GrammarVocabulary(tokenizer, pieces)
        return known

    def matcher(self, lark: str, limits: GrammarLimits) -> LLMatcher:
        """A grammar at its beginning; what is wrong with it is in the matcher."""
        bounds = LLParserLimits(
            initial_lexer_fuel=limits.compile_fuel, step_lexer_fuel=limits.step_fuel,
            max_lexer_states=limits.max_states, verbose_errors=False, precompute_large_lexemes=False,
        )  # fmt: skip
        grammars = json.dumps({"grammars": [{"lark_grammar": lark}]})
        return LLMatcher(self._json, grammars, limits=bounds, log_level=0)

    def mask_of(self, matcher: LLMatcher) -> NDArray[np.int32]:
        """Tokens that may come next, (V/32,): never those special ones, even if a grammar names them."""
        mask = np.zeros(self.num_words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        mask &= self._ordinary
        return mask

    def may_be_allowed(self, token_id: int) -> bool:
        """Whether there are grammars that allow this token at all."""
        return token_id < self.size and token_id not in self._never

    def tokens_of(self, text: bytes) -> list[int]:
        """Tokens that spell these bytes."""
        return self._json.tokenize_bytes(text) if text else []

    def cached(self, key: tuple[str, str, bool]) -> CompiledGrammar | None:
        """A grammar that was compiled before."""
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def keep(self, key: tuple[str, str, bool], compiled: CompiledGrammar, max_cached: int) -> None:
        """For the next request; the one that was not used for longest has to go."""
        with self._lock:
            self._cache[key] = compiled
            while len(self._cache) > max_cached:
                self._cache.popitem(last=False)


class _Tokens:
    """What the library asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: list[bytes], special: list[int], end: int, tokenizer: TextTokenizer, pieces: Sequence[bytes]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end
        self._pieces = pieces
        self._tokenizer = weakref.ref(tokenizer)  # which keeps the vocabulary

    def __call__(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "a model's tokenizer outlives its grammars"
        ids = tokenizer.encode_rest(text)
        wanted = text.encode()
        if b"".join(self._pieces[index] for index in ids) == wanted:
            return ids
        return self._longest_first(wanted)  # some tokenizers change spaces

    def _longest_first(self, text: bytes) -> list[int]:
        ids, place = list[int](), 0
        while place < len(text):
            size = next((n for n in range(self._longest, 0, -1) if text[place : place + n] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[text[place : place + size]])
            place += size
        return ids

    @functools.cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: index for index, piece in enumerate(self._pieces) if piece and index not in special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)


_VOCABULARIES: weakref.WeakKeyDictionary[TextTokenizer, GrammarVocabulary] = weakref.WeakKeyDictionary()
_BUILDING = threading.Lock()
_COMPILERS = ThreadPoolExecutor(2, thread_name_prefix="grammar")


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar at its beginning; every answer goes through a copy, and copies share the states they find."""

    matcher: LLMatcher
    vocabulary: GrammarVocabulary
    after: bytes = b""
    """The text after which it is in force; empty for from the start."""


def compile_grammar(
    grammar: Grammar, vocabulary: GrammarVocabulary, limits: GrammarLimits | None = None
) -> CompiledGrammar:
    """Ready to follow. Raises RequestError 400 for what is no grammar, cannot be followed or is too much work.

    May take a few hundred milliseconds and ``limits.timeout_s`` at most; not for the engine's own thread.
    """
    limits = limits or GrammarLimits()
    key = (grammar.kind, f"{grammar.text}\0{grammar.calls}", bool(grammar.after))
    compiled = vocabulary.cached(key)
    if compiled is None:
        param = "tools" if grammar.text.startswith(TOOL_GRAMMAR) else _PARAMS[grammar.kind]
        lark = _lark(grammar, vocabulary, limits, param)
        work = _COMPILERS.submit(_compile, lark, vocabulary, limits, param)
        try:
            compiled = work.result(limits.timeout_s)
        except TimeoutError:
            work.cancel()
            raise RequestError(
                f"The grammar was not ready after {limits.timeout_s:g} s.", "Simplify it, or try again later.",
                param=param,
            ) from None  # fmt: skip
        vocabulary.keep(key, compiled, limits.max_cached)
    after = grammar.after.encode()
    return CompiledGrammar(compiled.matcher, vocabulary, after) if after else compiled


def _compile(lark: str, vocabulary: GrammarVocabulary, limits: GrammarLimits, param: str) -> CompiledGrammar:
    matcher = vocabulary.matcher(lark, limits)
    if not matcher.is_error():
        mask = vocabulary.mask_of(matcher)  # finds the first states for all copies, and grammars that nothing meets
        if not matcher.is_error() and (not mask.any() or (matcher.is_stopped() and not matcher.is_accepting())):
            raise grammar_error("NoExtensionBias", param)
    if matcher.is_error():
        raise grammar_error(matcher.get_error(), param)
    return CompiledGrammar(matcher, vocabulary)


def grammar_error(message: str, param: str | None = None) -> RequestError:
    """What the library says, as an error for whoever sent the grammar."""
    said = re.sub(r"\s*\n\s+\d+ \|.*", "", message.partition("<non-verbose/>")[0].strip(), flags=re.DOTALL)
    said = re.sub(r"\s+", " ", said).removesuffix(".")[:300]
    unknown = re.search(r"Unimplemented keys: \[(.*)\]", said)
    if unknown:
        names = unknown[1].replace('"', "")
        return RequestError(
            f"The schema uses {names}, which answers cannot be held to.", "Leave it out.", param=param,
            code="unsupported_keyword",
        )  # fmt: skip
    if "NoExtensionBias" in said or "Unsatisfiable" in said:
        reason = said.replace("NoExtensionBias", "").strip()
        return RequestError(
            f"No text can meet the grammar{': ' * bool(reason)}{reason}.", "Check what it demands.", param=param
        )
    if re.search(r"too (big|large|many|complex)|limit|max is", said, re.IGNORECASE):
        return RequestError(f"The grammar is too much work: {said}.", "Simplify it.", param=param)
    return RequestError(f"The grammar cannot be used: {said}.", "Correct it.", param=param)


def _lark(grammar: Grammar, vocabulary: GrammarVocabulary, limits: GrammarLimits, param: str) -> str:
    """The same grammar in the one notation that the library is given."""
    text = grammar.text
    most = limits.max_lark_bytes if grammar.kind == "lark" else limits.max_bytes
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > most:
        raise RequestError(f"The grammar has {size_bytes} bytes.", f"Use at most {most}.", param=param)
    if "\x00" in text or (not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise RequestError("The grammar has characters that no text has.", "Remove NUL and surrogates.", param=param)
    if grammar.kind == "lark":
        if grammar.after:
            text = re.sub(r"(?m)^start(?=\s*:)", "after_lead", text, count=1) + f"\nstart: LEAD? after_lead\n{_LEAD}"
        return _in_tokens(text, vocabulary, param)
    if grammar.kind == "regex":
        body = json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"].removeprefix("start: ")
    elif grammar.kind == "choice":
        body = _choices(text, param)
    else:
        schema = parse_schema(text, param) if grammar.kind == "json_schema" else {"type": "object"}
        body = "%json " + _schema(schema)
    is_rule = body.startswith("%json")
    name = "body" if is_rule else "BODY"
    either, calls = name, ""
    if grammar.calls:
        either, calls = f"({name} | calls)", re.sub(r"(?m)^start(?=\s*:)", "calls", grammar.calls, count=1)
        calls = _in_tokens(calls, vocabulary, "tools")
    return f"start: {'LEAD? ' if grammar.after else ''}{either}\n{name}: {body}\n{_LEAD}{calls}"


def _in_tokens(text: str, vocabulary: GrammarVocabulary, param: str) -> str:
    """A grammar in Lark's notation with checked schemas, and with the model's tokens for the markers it names."""
    text = _with_bounded_schemas(text, param)
    text = _UP_TO.sub(lambda found: _up_to(found[1], found[2], vocabulary), text)
    return _MARKER.sub(lambda found: _marker(found[1], vocabulary), text)


def _schema(schema: Mapping[str, Any] | bool, *, is_lenient: bool = False) -> str:
    if isinstance(schema, bool):
        return json.dumps(schema)
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE, "lenient": is_lenient}})


def _choices(text: str, param: str) -> str:
    try:
        choices: Any = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        raise RequestError(f"The choices are {text:.60}.", "Send a list of texts, none of them empty.", param=param)
    return " | ".join(json.dumps(one, ensure_ascii=False) for one in choices)


def _with_bounded_schemas(text: str, param: str) -> str:
    """A grammar in Lark's notation whose JSON schemas were checked as any other."""
    pieces = text.split("%json")
    for place, piece in enumerate(pieces[1:], 1):
        start = len(piece) - len(piece.lstrip())
        try:
            value, end = json.JSONDecoder().raw_decode(piece, start)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"The grammar has %json without a schema: {error}.", "Write the schema after it.", param=param
            ) from None
        settings: Any = value.get("x-guidance") if isinstance(value, dict) else None
        is_lenient = isinstance(settings, dict) and bool(settings.get("lenient"))
        pieces[place] = f" {_schema(parse_schema(json.dumps(value), param), is_lenient=is_lenient)}{piece[end:]}"
    return "%json".join(pieces)


def _marker(name: str, vocabulary: GrammarVocabulary) -> str:
    """A special token of tool calls, or its text where the model has no such token."""
    index = vocabulary.marker_ids.get(name)
    return json.dumps(name) if index is None else f"<[{index}]>"


def _up_to(rule: str, name: str, vocabulary: GrammarVocabulary) -> str:
    """A rule of any text up to and with a marker."""
    if name in vocabulary.marker_ids:
        return f"{rule}: /(.|\\n)*/ {_marker(name, vocabulary)}"
    escaped = re.escape(name).replace("/", "\\/")
    return f"{rule}[lazy]: /(.|\\n)*{escaped}/"
