import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from danlu.core.errors import RequestError
from danlu.models.loaded import LoadedModel
from danlu.serve.engine.constrain import Constraint, GrammarVocabulary, apply_masks, compile_grammar
from danlu.serve.engine.request import Grammar
from danlu.text.tokenizer import TextStream, TextTokenizer
from danlu.text.tool_formats import DIALECTS, MARKERS, ToolFormat
from danlu.text.tool_grammar import tool_grammar
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece, ToolParser
from danlu.text.tools import ToolChoice, tool_schemas
from tests.tiny import SPECIAL, make_tokenizer

TOKENIZER = TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], begin_token="<|im_start|>")
VOCABULARY = GrammarVocabulary.of(TOKENIZER)
END = TOKENIZER.special_ids["<|im_end|>"]


def with_markers() -> TextTokenizer:
    backend = make_tokenizer()
    backend.add_special_tokens([name for name in MARKERS if name != "<tool_call>"])
    return TextTokenizer(backend, end_tokens=["<|im_end|>"])


MARKED = with_markers()


def start(kind: str, text: Any = "", after: str = "", tokenizer: TextTokenizer = TOKENIZER) -> Constraint:
    text = text if isinstance(text, str) else json.dumps(text)
    asked = Grammar(kind=kind, text=text, after=after)  # type: ignore[arg-type]
    return Constraint(compile_grammar(asked, GrammarVocabulary.of(tokenizer)))


def write(constraint: Constraint, text: str, tokenizer: TextTokenizer = TOKENIZER) -> None:
    for index in tokenizer.encode(text):
        assert constraint.allows(index), (text, index)
        constraint.advance(index)


def allowed_ids(constraint: Constraint) -> list[int]:
    return np.flatnonzero(np.unpackbits(constraint.allowed().view(np.uint8), bitorder="little")).tolist()


def sample(
    constraint: Constraint, tokenizer: TextTokenizer, seed: int, *, forces: bool = False, max_tokens: int = 400
) -> tuple[str, bool]:
    """An answer of random logits, ended as the engine ends it; and whether it is complete."""
    generator = torch.Generator().manual_seed(seed)
    stream, text, num_tokens = TextStream(tokenizer, shown=MARKERS), "", 0
    while num_tokens < max_tokens and not constraint.is_done:
        for index in constraint.forced() if forces else []:
            assert constraint.allows(index)
            constraint.advance(index)
            text += stream.push(index)
        logits = torch.randn((1, tokenizer.vocabulary_size + 3), generator=generator) * 3
        apply_masks(logits, [(0, constraint)])
        index = int(logits.argmax())
        if index in tokenizer.end_ids:
            return text + stream.finish(), True
        assert constraint.allows(index)
        constraint.advance(index)
        text += stream.push(index)
        num_tokens += 1
    return text + stream.finish(), constraint.is_done


# ---- one answer ------------------------------------------------------------------------------------------------------


def test_only_tokens_that_go_on_in_the_grammar_are_allowed_and_the_end_when_it_is_met() -> None:
    constraint = start("regex", "a+b")
    assert {TOKENIZER.decode([index])[0] for index in allowed_ids(constraint)} == {"a"}
    write(constraint, "aa")
    assert not constraint.is_accepting
    assert not constraint.allows(END)
    write(constraint, "b")
    assert constraint.is_done
    assert allowed_ids(constraint) == [END]
    constraint.advance(END)
    assert constraint.is_done


def test_an_answer_that_could_go_on_may_also_end() -> None:
    constraint = start("regex", "a*")
    write(constraint, "a")
    assert constraint.allows(END)
    assert constraint.allows(TOKENIZER.encode("a")[0])
    assert not constraint.is_done
    constraint.advance(END)
    assert constraint.is_done


def test_special_tokens_are_never_allowed_however_the_grammar_names_them() -> None:
    constraint = start("lark", "start: /(.|\\n)+/ | <[0-3]>")
    others = [TOKENIZER.special_ids[name] for name in SPECIAL if name != "<|im_end|>"]
    assert not any(constraint.allows(index) for index in others)
    assert not constraint.allows(10_000)


def test_a_fork_goes_its_own_way() -> None:
    one = start("regex", "x(ab|cd)")
    write(one, "x")
    other = one.fork()
    write(one, "ab")
    write(other, "cd")
    assert one.is_done
    assert other.is_done


def test_tokens_taken_back_leave_the_grammar_as_it_was() -> None:
    constraint = start("json_schema", {"type": "array", "items": {"type": "integer"}})
    write(constraint, "[1")
    before = allowed_ids(constraint)
    more = TOKENIZER.encode(", 23]")
    for index in [*more, END]:
        constraint.advance(index)
    assert constraint.is_done
    constraint.rollback(len(more) + 1)
    constraint.rollback(0)
    assert allowed_ids(constraint) == before
    assert not constraint.is_done
    write(constraint, "]")
    assert constraint.is_done


def test_drafted_tokens_count_as_far_as_they_fit() -> None:
    constraint = start("regex", "ab[0-9]c")
    before = allowed_ids(constraint)
    a, b, one, c = (TOKENIZER.encode(letter)[0] for letter in "ab1c")
    assert constraint.num_valid([a, b, one, c]) == 4
    assert constraint.num_valid([a, b, b, c]) == 2
    assert constraint.num_valid([]) == 0
    assert allowed_ids(constraint) == before  # it has not moved


def test_what_has_to_come_is_told_at_once() -> None:
    constraint = start("json_schema", {"properties": {"temperature": {"type": "integer"}}, "required": ["temperature"],
                                       "additionalProperties": False})  # fmt: skip
    write(constraint, '{"')
    text = TOKENIZER.decode(constraint.forced())
    assert text
    assert 'temperature"'.startswith(text)
    assert start("regex", "a|b").forced() == []
    done = start("choice", ["a"])
    write(done, "a")
    assert done.forced() == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_object", ""),
        ("json_schema", {"properties": {"n": {"type": "string", "maxLength": 9}}, "required": ["n"]}),
        ("regex", "(ab|cd)*[0-9]{2,4}"),
        ("choice", ["navy", "night", "black"]),
        ("lark", 'start: "<" start ">" | /[a-z]/'),
    ],
)
def test_tokens_that_can_be_taken_are_those_of_the_mask(kind: str, text: Any) -> None:
    generator = random.Random(kind)
    for _ in range(4):
        constraint = start(kind, text)
        for _ in range(12):
            before = constraint.fork()
            allowed = set(allowed_ids(constraint))
            for index in range(VOCABULARY.size + 3):
                assert before.take(index) == (index in allowed), index
                if index in allowed:
                    before.rollback(1)
            chosen = generator.choice(sorted(allowed))
            assert constraint.take(chosen)
            if chosen == END or constraint.is_done:
                break


def test_work_beyond_the_bounds_of_a_step_ends_the_answer_with_an_error() -> None:
    constraint = start(
        "lark", "start: r0\n" + "".join(f'r{i}: r{i + 1} r{i + 1} | "a"\n' for i in range(150)) + 'r150: "b"'
    )
    with pytest.raises(RequestError, match=r"The grammar is too much work: .*Simplify it") as caught:
        for index in TOKENIZER.encode("a") * 200:
            constraint.allowed()
            constraint.advance(index)
    assert caught.value.status == 400


# ---- grammars that wait for a trigger --------------------------------------------------------------------------------


def test_a_grammar_with_a_trigger_leaves_the_answer_free_until_it_was_written() -> None:
    constraint = start("regex", "[0-9]+", after="<n>")
    write(constraint, "free <n")
    assert not constraint.is_active
    assert constraint.forced() == []
    assert constraint.num_valid([1, 2]) == 2
    twin = constraint.fork()
    write(constraint, ">")
    assert constraint.is_active
    assert not twin.is_active
    assert not constraint.allows(TOKENIZER.encode("x")[0])
    write(constraint, "12")
    assert constraint.is_accepting
    constraint.rollback(3)
    assert not constraint.is_active
    write(constraint, "x <n>")
    assert constraint.is_active


@pytest.mark.parametrize(
    ("kind", "text"), [("lark", 'start: "{" | "yes"'), ("choice", ["{", "yes"]), ("json_object", "")]
)
def test_white_space_may_stand_between_a_trigger_and_what_follows(kind: str, text: Any) -> None:
    for space in ("", "\n\n"):
        constraint = start(kind, text, after="</think>")
        write(constraint, f"Hm.</think>{space}{{")
        assert constraint.is_active


def test_what_a_token_has_beyond_the_trigger_counts() -> None:
    joined = next(i for i, piece in enumerate(VOCABULARY.pieces) if len(piece) == 4 and piece.isalpha())
    text = VOCABULARY.pieces[joined].decode()
    constraint = start("regex", f"{text[3:]}[0-9]", after=text[:3])
    constraint.advance(joined)
    assert constraint.is_active
    write(constraint, "7")
    assert constraint.is_done
    constraint.rollback(2)
    assert not constraint.is_active
    against = start("regex", "[0-9]", after=text[:3])
    against.advance(joined)
    assert not against.is_active


# ---- many rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_make_all_other_tokens_impossible_in_their_rows_alone(dtype: torch.dtype) -> None:
    width = VOCABULARY.size + 7  # models pad their vocabularies
    logits = torch.randn((4, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    one, two, waiting = start("regex", "[ab]+"), start("json_object"), start("regex", "a", after="<x>")
    apply_masks(logits, [(2, one), (0, two), (3, waiting)])
    assert torch.equal(logits[[1, 3]], before[[1, 3]])
    for row, constraint in ((2, one), (0, two)):
        possible = torch.isfinite(logits[row]).nonzero().flatten().tolist()
        assert possible == allowed_ids(constraint)
        assert torch.equal(logits[row, possible], before[row, possible])
    apply_masks(logits, [])


# ---- answers that were drawn at random -------------------------------------------------------------------------------


def is_person(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["name", "age", "tags"]
        and isinstance(value["name"], str)
        and 1 <= len(value["name"]) <= 20
        and type(value["age"]) is int
        and 0 <= value["age"] <= 120
        and len(value["tags"]) <= 3
        and all(tag in ("new", "sale") for tag in value["tags"])
    )


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", "sale"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
EITHER = {"anyOf": [{"const": None}, {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}]}
TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    },
    "$ref": "#/$defs/node",
}  # fmt: skip


def is_tree(value: Any) -> bool:
    return value == {} or (list(value) == ["left"] and is_tree(value["left"]))


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (PERSON, is_person),
    (EITHER, lambda value: value is None or re.fullmatch("[A-Z]{2}-[0-9]{3}", value) is not None),
    (TREE, is_tree),
]


@pytest.mark.parametrize(("schema", "is_right"), SCHEMAS, ids=["person", "either", "tree"])
@pytest.mark.parametrize("seed", range(4))
def test_a_complete_answer_always_meets_its_schema(
    schema: dict[str, Any], is_right: Callable[[Any], bool], seed: int
) -> None:
    text, is_complete = sample(start("json_schema", schema), TOKENIZER, seed, forces=seed % 2 == 1)
    assert is_complete
    assert is_right(json.loads(text))


@pytest.mark.model
def test_complete_answers_in_real_tokens_meet_their_schemas(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.model.chat.tokenizer
    for (schema, is_right), seed in itertools.product(SCHEMAS, range(4)):
        text, is_complete = sample(
            start("json_schema", schema, tokenizer=tokenizer), tokenizer, seed, forces=seed % 2 == 1
        )
        assert is_complete
        assert is_right(json.loads(text))


# ---- tools -----------------------------------------------------------------------------------------------------------


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": {"type": "object", "properties": parameters, "required": list(parameters)}}
    return {"type": "function", "function": function}


TOOLS = [tool("weather", city={"enum": ["Oslo", "北京"]}, unit={"$ref": "#/$defs/u"}), tool("now")]
TOOLS[0]["function"]["parameters"]["$defs"] = {"u": {"enum": ["C", "F"], "uniqueItems": True}}
NAMED = {"type": "function", "function": {"name": "weather"}}


def called(
    form: ToolFormat, text: str, tools: Sequence[Mapping[str, Any]] = TOOLS
) -> tuple[str, list[tuple[str, Any]]]:
    parser = ToolParser(form, tool_schemas(tools))
    content, calls = "", list[list[str]]()
    for piece in parser.push(text) + parser.finish():
        if isinstance(piece, ContentPiece):
            content += piece.text
        elif isinstance(piece, CallStart):
            calls.append([piece.name, ""])
        elif isinstance(piece, ArgumentsPiece):
            calls[-1][1] += piece.text
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def is_call(name: str, arguments: Any) -> bool:
    if name == "now":
        return arguments == {}
    return list(arguments) == ["city", "unit"] and arguments["city"] in ("Oslo", "北京") and arguments["unit"] in "CF"


@pytest.mark.parametrize("form", DIALECTS)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize(("choice", "is_parallel"), [("required", True), ("required", False), (NAMED, True)])
def test_every_answer_of_a_tool_grammar_is_read_back_as_its_calls(
    form: ToolFormat, tokenizer: TextTokenizer, choice: ToolChoice, is_parallel: bool
) -> None:
    grammar = tool_grammar(TOOLS, choice, form, is_parallel=is_parallel)
    assert grammar is not None
    counts = set[int]()
    for seed in range(5):
        answer = start("lark", grammar.text, grammar.after, tokenizer)
        text, is_complete = sample(answer, tokenizer, seed, forces=True, max_tokens=3000)
        content, calls = called(form, text)
        assert is_complete
        assert content == ""
        assert all(is_call(*call) for call in calls)
        counts.add(len(calls))
    assert min(counts) >= 1
    assert (max(counts) > 1) == (is_parallel and choice == "required")


@pytest.mark.parametrize("form", DIALECTS)
def test_with_auto_the_answer_is_free_until_the_model_opens_a_call(form: ToolFormat) -> None:
    grammar = tool_grammar(TOOLS, "auto", form)
    assert grammar is not None
    generator = random.Random(1)
    for seed in range(3):
        constraint = start("lark", grammar.text, grammar.after, MARKED)
        before = f"Let me see{'.' * generator.randrange(3)} "
        write(constraint, before, MARKED)
        assert not constraint.is_active
        marker = MARKED.special_ids.get(grammar.after)
        for index in MARKED.encode(grammar.after) if marker is None else [marker]:
            constraint.advance(index)
        assert constraint.is_active
        text, is_complete = sample(constraint, MARKED, seed, forces=True, max_tokens=3000)
        assert is_complete
        content, calls = called(form, before + grammar.after + text)
        assert content == before.rstrip()
        assert calls
        assert all(is_call(*call) for call in calls)


FULL = tool(
    "note", text={"type": "string"}, kind={"enum": ["a", "b"]}, size={"type": "integer"}, deep={"type": "object"},
    is_new={"type": "boolean"}, more={"type": ["string", "null"]},
)  # fmt: skip
FULL["function"]["parameters"]["required"] = ["text", "deep"]
GIVEN = {"text": "Is 1 < 2?\n\n</p>", "kind": "b", "deep": {"x": [1]}, "more": "y"}
DEEP = '{"x": [1]}'
WRITTEN: dict[ToolFormat, str] = {
    "qwen3_coder": "<tool_call>\n<function=note>\n" + "".join(
        f"<parameter={key}>\n{DEEP if key == 'deep' else value}\n</parameter>\n" for key, value in GIVEN.items()
    ) + "</function>\n</tool_call>",
    "glm": "<tool_call>note" + "".join(
        f"\n<arg_key>{key}</arg_key>\n<arg_value>{DEEP if key == 'deep' else value}</arg_value>"
        for key, value in GIVEN.items()
    ) + "\n</tool_call>",
    "pythonic": f'[note(text="Is 1 < 2?\\n\\n</p>", deep={DEEP}, kind="b", more="y")]',
    "deepseek": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>note\n```json\n{json.dumps(GIVEN)}"
    "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "functools": f'functools[{{"name": "note", "arguments": {json.dumps(GIVEN)}}}]',
}  # fmt: skip


@pytest.mark.parametrize("form", WRITTEN)
def test_calls_with_texts_and_without_what_is_optional_keep_to_the_grammar(form: ToolFormat) -> None:
    grammar = tool_grammar([FULL], "required", form, is_parallel=False)
    assert grammar is not None
    constraint = start("lark", grammar.text, grammar.after)
    write(constraint, WRITTEN[form])
    assert constraint.is_accepting
    content, calls = called(form, WRITTEN[form], [FULL])
    assert (content, calls) == ("", [("note", GIVEN)])


@pytest.mark.parametrize("form", DIALECTS)
def test_an_answer_may_be_a_call_or_text_in_its_form(form: ToolFormat) -> None:
    grammar = tool_grammar(TOOLS, "auto", form, is_whole=True)
    assert grammar is not None
    assert grammar.after == ""
    asked = Grammar(kind="json_schema", text=json.dumps(PERSON), calls=grammar.text)
    compiled = compile_grammar(asked, GrammarVocabulary.of(MARKED))
    text = Constraint(compiled)
    write(text, '{"name": "Li", "age": 3, "tags": []}', MARKED)
    assert text.is_accepting
    against = Constraint(compiled)
    assert not against.allows(MARKED.encode("x")[0])
    call, opening = Constraint(compiled), DIALECTS[form].openings[0]
    for index in [MARKED.special_ids[opening]] if opening in MARKED.special_ids else MARKED.encode(opening):
        assert call.allows(index)
        call.advance(index)
    rest, is_complete = sample(call, MARKED, 1, forces=True, max_tokens=3000)
    assert is_complete
    assert all(is_call(*one) for one in called(form, opening + rest)[1])
    bare = {"llama3": '{"name": "now", "parameters": {}}', "pythonic": "[now()]"}.get(form)
    if bare is not None:  # models leave the opening out
        call = Constraint(compiled)
        write(call, bare, MARKED)
        assert call.is_accepting
        assert called(form, bare) == ("", [("now", {})])


def test_tags_hold_no_strict_text_to_a_pattern() -> None:
    strict = tool("f", code={"type": "string", "pattern": "[a-z]+"})
    strict["function"]["strict"] = True
    with pytest.raises(RequestError, match="The schema uses pattern, which this model's calls cannot be held to"):
        tool_grammar([strict], "required", "glm")
    assert tool_grammar([strict], "required", "hermes") is not None


def test_strict_tools_are_refused_what_cannot_be_held_to() -> None:
    strict = json.loads(json.dumps(TOOLS[0]))
    strict["function"]["strict"] = True
    grammar = tool_grammar([strict], "required", "hermes")
    assert grammar is not None
    with pytest.raises(RequestError, match="The schema uses uniqueItems, which answers cannot be held to") as caught:
        start("lark", grammar.text, grammar.after)
    assert caught.value.param == "tools"
