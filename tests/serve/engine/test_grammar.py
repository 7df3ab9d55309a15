import contextlib
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from danlu.core.errors import RequestError
from danlu.serve.engine.constrain import Constraint
from danlu.serve.engine.grammar import GrammarLimits, GrammarVocabulary, compile_grammar
from danlu.serve.engine.request import Grammar
from danlu.text.tokenizer import TextTokenizer
from danlu.text.tool_grammar import TOOL_GRAMMAR
from tests.text import tokenizers as kinds
from tests.tiny import make_tokenizer

TOKENIZER = TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], begin_token="<|im_start|>")
VOCABULARY = GrammarVocabulary.of(TOKENIZER)


def grammar(kind: str, text: Any = "", after: str = "") -> Grammar:
    text = text if isinstance(text, str) else json.dumps(text)
    return Grammar(kind=kind, text=text, after=after)  # type: ignore[arg-type]


def accepts(asked: Grammar, text: str, vocabulary: GrammarVocabulary = VOCABULARY) -> bool:
    """Whether the whole text is an answer of this form."""
    constraint = Constraint(compile_grammar(asked, vocabulary))
    for index in TOKENIZER.encode(text):
        if not constraint.allows(index):
            return False
        constraint.advance(index)
    return constraint.is_accepting


def refused(asked: Grammar, match: str, param: str = "response_format") -> None:
    started = time.monotonic()
    with pytest.raises(RequestError, match=match) as caught:
        compile_grammar(asked, VOCABULARY)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        (grammar("json_object"), ['{"a": [1, {"b": null}]}', "{}"], ["[1]", '"a"', "{", " {}"]),
        (grammar("json_schema", {"type": "integer", "minimum": 3}), ["3", "12"], ["2", "1.5", '"3"']),
        (grammar("json_schema", {"enum": ["red", 3]}), ['"red"', "3"], ['"blue"', "red"]),
        (grammar("json_schema", {"type": "string", "format": "binary"}), ['"any"'], ["any"]),
        (grammar("json_schema", "true"), ["1", "null", '{"a": 1}'], ["x"]),
        (grammar("json_schema", {"type": "array", "items": {"type": "integer"}, "maxItems": 1}), ["[1]"], ["[1, 2]"]),
        (grammar("regex", r"[a-c]+/\d{2}"), ["ab/12"], ["d/12", "ab/123"]),
        (grammar("regex", "^yes|no$"), ["yes", "no"], ["maybe"]),
        (grammar("choice", ["red", 'a "b"\n', "面料👗"]), ["red", 'a "b"\n', "面料👗"], ["blue", "re"]),
        (grammar("lark", 'start: "a" x+\nx: "b" | /[0-9]/'), ["abb1"], ["a", "bb"]),
        (grammar("lark", 'start: "n=" %json {"type": "integer"}'), ["n=4"], ["n=x"]),
    ],
)  # fmt: skip
def test_each_kind_of_grammar_holds(asked: Grammar, good: list[str], bad: list[str]) -> None:
    assert all(accepts(asked, text) for text in good)
    assert not any(accepts(asked, text) for text in bad)


def test_json_may_be_indented_but_not_padded_without_end() -> None:
    asked = grammar(
        "json_schema", {"properties": {"a": {"items": {}}}, "required": ["a"], "additionalProperties": False}
    )
    value = {"a": [1, {"b": [True]}]}
    for indent in (None, 1, 4, "\t"):
        assert accepts(asked, json.dumps(value, indent=indent))
    assert not accepts(asked, '{"a":  [1]}')
    assert not accepts(asked, '{"a":\n\n\n[1]}')


@pytest.mark.parametrize(
    ("asked", "match", "param"),
    [
        (grammar("json_schema", "{"), "The schema is not JSON", "response_format"),
        (grammar("json_schema", {"not": {}}), "The schema uses not, which answers cannot be held to. Leave it out", ""),
        (grammar("json_schema", {"items": {"uniqueItems": True}}), "The schema uses uniqueItems, which", ""),
        (grammar("json_schema", {"not": {}, "x-guidance": {"lenient": True}}), "The schema uses not", ""),
        (grammar("json_schema", {"type": "foo"}), "The grammar cannot be used: .*Invalid type: foo", ""),
        (grammar("json_schema", {"$ref": "#/$defs/x"}), "cannot be used: .*'/\\$defs/x' does not exist", ""),
        (grammar("json_schema", {"$ref": "https://example.com/x"}), "cannot be used: .*is not present", ""),
        (grammar("json_schema", {"minimum": 5, "maximum": 1, "type": "integer"}), "No text can meet the grammar: ", ""),
        (grammar("json_schema", "false"), "No text can meet the grammar", ""),
        (grammar("json_schema", {"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}), "No text can meet", ""),
        (grammar("json_schema", {"type": "string", "pattern": "(a"}), "cannot be used: .*unclosed group", ""),
        (grammar("json_schema", {"type": "string", "pattern": "(?=a)b"}), "look-around, .*is not supported", ""),
        (grammar("regex", "(a"), "cannot be used: .*unclosed group", "structured_outputs.regex"),
        (grammar("regex", r"[^\s\S]"), "No text can meet the grammar", "structured_outputs.regex"),
        (grammar("regex", "a" * 70_000), "The grammar has 70000 bytes. Use at most 65536", "structured_outputs.regex"),
        (grammar("regex", "a\x00b"), "characters that no text has", "structured_outputs.regex"),
        (grammar("regex", "a\ud800"), "characters that no text has", "structured_outputs.regex"),
        (grammar("choice", []), r"The choices are \[\]. Send a list of texts", "structured_outputs.choice"),
        (grammar("choice", ["a", ""]), "Send a list of texts, none of them empty", "structured_outputs.choice"),
        (grammar("choice", "{"), "The choices are {", "structured_outputs.choice"),
        (grammar("lark", 'x: "a"'), "cannot be used: no start rule found", "structured_outputs.grammar"),
        (grammar("lark", "start: 'a'"), "cannot be used: .*lexer error", "structured_outputs.grammar"),
        (grammar("lark", "start: <[1]>"), "No text can meet the grammar", "structured_outputs.grammar"),
        (grammar("lark", "start: %json"), "%json without a schema", "structured_outputs.grammar"),
        (grammar("lark", f"{TOOL_GRAMMAR}\nx: %json {{", after="<f>"), "%json without a schema", "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_and_says_why(asked: Grammar, match: str, param: str) -> None:
    refused(asked, match, param or "response_format")


def nested_objects(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "asked",
    [
        grammar("json_schema", {"enum": [f"value{i}" for i in range(10_000)]}),
        grammar("json_schema", nested_objects(200)),
        grammar("json_schema", "[" * 60_000),
        grammar("json_schema", {"type": "integer", "multipleOf": 1_000_003}),
        grammar("json_schema", {"allOf": [{"anyOf": [{"pattern": f"a.*{i}"} for i in range(12)]}] * 6}),
        grammar(
            "json_schema", {"allOf": [{"anyOf": [{"pattern": f"a{j}.*{i}"} for i in range(12)]} for j in range(6)]}
        ),
        grammar("regex", "(" * 20_000 + "a" + ")" * 20_000),
        grammar("regex", "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
        grammar("regex", r"(\w{1,500}\s){1,500}(.*x.{300}){9}"),
        grammar("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
        grammar("lark", "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(60)) + 'A60: "a"'),
        grammar("lark", "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(2000)) + 'r2000: "a"'),
        grammar("lark", 'start: %json {"multipleOf": 1000003}'),
        grammar("lark", 'start: %json {"\\u006dultipleOf": 1000003}'),
        grammar("lark", '{"grammars": [{"json_schema": {"multipleOf": 1000003}}]}'),
    ],
    ids=range(15),
)
def test_a_hostile_grammar_is_refused_or_followed_within_seconds(asked: Grammar) -> None:
    started = time.monotonic()
    with contextlib.suppress(RequestError):
        constraint = Constraint(compile_grammar(asked, VOCABULARY))
        for index in TOKENIZER.encode("aaaa bbbb cccc dddd")[:10]:
            if constraint.is_done or not constraint.allows(index):
                break
            constraint.advance(index)
    assert time.monotonic() - started < 10


def test_a_grammar_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(RequestError, match=r"The grammar was not ready after 0 s\. Simplify it, or try again later"):
        compile_grammar(grammar("regex", "never (seen )+before"), VOCABULARY, GrammarLimits(timeout_s=0))


def test_grammars_are_compiled_once_and_the_oldest_is_forgotten() -> None:
    vocabulary = GrammarVocabulary(TOKENIZER, VOCABULARY.pieces)
    limits = GrammarLimits(max_cached=2)

    def compiled(text: str, after: str = "") -> object:
        return compile_grammar(grammar("regex", text, after), vocabulary, limits).matcher

    first = compiled("a")
    assert compiled("a") is first
    assert compiled("a", "<x>") is compiled("a", "<y>")
    assert compiled("a", "<x>") is not first
    compiled("b")
    assert compiled("a") is not first


def test_a_vocabulary_is_built_once_and_tokenizers_without_spaces_are_refused() -> None:
    assert GrammarVocabulary.of(TOKENIZER) is VOCABULARY
    with pytest.raises(
        RequestError, match="does not tell where words are joined, so its answers cannot follow a grammar"
    ):
        GrammarVocabulary.of(kinds.wordpiece())


@pytest.mark.parametrize("make", [kinds.roberta, kinds.llama3_like, kinds.unigram, kinds.sentencepiece_bpe])
def test_tokenizers_of_other_kinds_follow_grammars_too(make: Callable[[], TextTokenizer]) -> None:
    tokenizer, generator, form = make(), random.Random(0), "soft( and [a-z]{2,5})*, lined"
    for _ in range(5):
        constraint = Constraint(compile_grammar(grammar("regex", form), GrammarVocabulary.of(tokenizer)))
        ids: list[int] = []
        while not constraint.is_done:
            index = generator.choice([i for i in range(tokenizer.vocabulary_size) if constraint.allows(i)])
            constraint.advance(index)
            ids.append(index)
        assert re.fullmatch(form, tokenizer.decode(ids))


def test_without_an_end_token_a_complete_answer_is_done_all_the_same() -> None:
    tokenizer = TextTokenizer(make_tokenizer(), end_tokens=[])
    assert accepts(grammar("choice", ["ab", "cd"]), "ab", GrammarVocabulary.of(tokenizer))
