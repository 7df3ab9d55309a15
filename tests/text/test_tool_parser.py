import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.text.tool_formats import DIALECTS, MARKERS, ToolFormat
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece, ToolParser, ToolPiece

WEATHER = '{"city": "München \\"Süd\\"", "days": [1, 2.5e3, {"deep": null}]}'
HERMES = '<tool_call>\n{"name": "weather", "arguments": ' + WEATHER + "}\n</tool_call>"
LLAMA = '{"name": "weather", "parameters": ' + WEATHER + "}"
MISTRAL = '[TOOL_CALLS][{"name": "weather", "arguments": ' + WEATHER + '}, {"arguments": {"q": 1}, "name": "find"}]'
MISTRAL_13 = f'[TOOL_CALLS]weather[ARGS]{WEATHER}[TOOL_CALLS]find[CALL_ID]a1b2c3d4e[ARGS]{{"q": 1}}'
QWEN = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nMünchen "Süd"\n</parameter>\n'
    '<parameter=days>\n[1, 2.5e3, {"deep": null}]\n</parameter>\n</function>\n</tool_call>'
)
GLM = (
    '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>München "Süd"</arg_value>\n'
    '<arg_key>days</arg_key>\n<arg_value>[1, 2.5e3, {"deep": null}]</arg_value>\n</tool_call>'
)
OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_OPEN, CALL_CLOSE, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
DEEPSEEK = f"{CALL_OPEN}function{SEPARATOR}weather\n```json\n{WEATHER}\n```{CALL_CLOSE}"
BARE_FIND = f'{CALL_OPEN}find{SEPARATOR}{{"q": 1}}{CALL_CLOSE}'
PYTHON = """weather(city='München "Süd"', days=[1, 2.5e3, {"deep": None},])"""
CALL = ("weather", WEATHER)
FIND = ("find", '{"q": 1}')

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}}

Parsed = tuple[str, list[tuple[str, str]]]
CASES: list[tuple[ToolFormat, str, Parsed]] = [
    ("hermes", "Just text <tool, [1] {2}\n", ("Just text <tool, [1] {2}\n", [])),
    ("hermes", HERMES, ("", [CALL])),
    ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n", ("Let me see.", [CALL, CALL])),
    ("hermes", f"One.\n\n{HERMES}\nTwo.", ("One.\nTwo.", [CALL])),
    ("hermes", HERMES.removesuffix("\n</tool_call>"), ("", [CALL])),
    ("hermes", HERMES.replace("}\n<", "\n<"), ("", [CALL])),  # a brace forgotten
    ("hermes", '<tool_call>{"arguments": {"q": 1}, "name": "find"}</tool_call>', ("", [FIND])),
    ("hermes", '<tool_call>{"name": "find", "arguments": "{\\"q\\": 1}"}</tool_call>', ("", [FIND])),
    ("hermes", '<tool_call>{"name": "find"}</tool_call>', ("", [("find", "{}")])),
    ("hermes", '<tool_call>{"name": "find", "arguments": null}</tool_call>', ("", [("find", "{}")])),
    ("hermes", '<tool_call>{"type": "function", "name": "find", "arguments": {"q": 1}, "x": 3}</tool_call>',
     ("", [FIND])),
    ("hermes", '<tool_call>{"name": "find", "arguments": {"q": "a\nb"}}</tool_call>',
     ("", [("find", '{"q": "a\\nb"}')])),
    ("hermes", '<tool_call>{"name": "find", "arguments": {"q": 1', ("", [("find", '{"q": 1')])),
    # not calls: nothing is lost
    ("hermes", "<tool_call>\nweather(Paris)\n</tool_call>", ("<tool_call>\nweather(Paris)\n</tool_call>", [])),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}', ('<tool_call>{"name": "other", "arguments": {}}', [])),
    ("hermes", '<tool_call>{"name": 3}', ('<tool_call>{"name": 3}', [])),
    ("hermes", '<tool_call>{"city": "Paris"}', ('<tool_call>{"city": "Paris"}', [])),
    ("hermes", '<tool_call>{"name": "find", "arguments": [1]}', ('<tool_call>{"name": "find", "arguments": [1]}', [])),
    ("hermes", '<tool_call>{"name": "fi', ('<tool_call>{"name": "fi', [])),
    ("hermes", "so <tool_call", ("so <tool_call", [])),
    ("hermes", f"<tool_call> <tool_call>x {HERMES}", ("<tool_call> <tool_call>x", [CALL])),
    ("hermes", '<tool_call>{"name": "find", "arguments": {"q": oops}}', ("}}", [("find", '{"q": oops')])),
    ("llama3", LLAMA, ("", [CALL])),
    ("llama3", f"  {LLAMA}; {LLAMA}", ("", [CALL, CALL])),
    ("llama3", f"<|python_tag|>{LLAMA}", ("", [CALL])),
    ("llama3", f"Sure. {LLAMA}", (f"Sure. {LLAMA}", [])),
    ("llama3", '{"name": "Bob", "age": 3}', ('{"name": "Bob", "age": 3}', [])),
    ("llama3", '{"answer": 42}', ('{"answer": 42}', [])),
    ("llama3", f"{LLAMA} Done; ok.", (" Done; ok.", [CALL])),
    ("mistral", MISTRAL, ("", [CALL, FIND])),
    ("mistral", f"Hm. {MISTRAL}", ("Hm.", [CALL, FIND])),
    ("mistral", MISTRAL.replace("][", "]  [ "), ("", [CALL, FIND])),
    ("mistral", MISTRAL_13, ("", [CALL, FIND])),
    ("mistral", '[TOOL_CALLS]find{"q": 1}', ("", [FIND])),
    ("mistral", '[TOOL_CALLS]other[ARGS]{"q": 1}', ('[TOOL_CALLS]other[ARGS]{"q": 1}', [])),
    ("mistral", "[TOOL_CALLS] is a marker [1]", ("[TOOL_CALLS] is a marker [1]", [])),
    ("qwen3_coder", QWEN, ("", [CALL])),
    ("qwen3_coder", f"I look.\n\n{QWEN}\n{QWEN}\nDone.", ("I look.\nDone.", [CALL, CALL])),
    ("qwen3_coder", QWEN.removeprefix("<tool_call>\n"), ("", [CALL])),  # the opening forgotten
    ("qwen3_coder", QWEN.removesuffix("\n</function>\n</tool_call>"), ("", [CALL])),
    ("qwen3_coder", "<function=find></function>", ("", [("find", "{}")])),
    ("qwen3_coder", "<function=find>\n<parameter=q>1</parameter></function>", ("", [FIND])),
    ("qwen3_coder", "<function=find><parameter=q>\n\n if x < 3:\n\n</parameter></function>",
     ("", [("find", '{"q": "\\n if x < 3:\\n"}')])),
    ("qwen3_coder", "<function=find><parameter=q>\nab</para", ("", [("find", '{"q": ab</para')])),
    ("qwen3_coder", "<function=weather><parameter=city>\nab</para", ("", [("weather", '{"city": "ab</para')])),
    ("qwen3_coder", "<function=find><parameter=q>1</parameter>oops</function>", ("oops</function>", [FIND])),
    ("qwen3_coder", "<function=other><parameter=q>", ("<function=other><parameter=q>", [])),
    ("qwen3_coder", "<tool_call> <function=find> x", ("<tool_call> <function=find> x", [])),
    ("glm", GLM, ("", [CALL])),
    ("glm", f"Hm.\n{GLM}\n{GLM}", ("Hm.", [CALL, CALL])),
    ("glm", GLM.replace("\n", ""), ("", [CALL])),
    ("glm", "<tool_call>find\n</tool_call>", ("", [("find", "{}")])),
    ("glm", "<tool_call>find<arg_key>q</arg_key><arg_value>True</arg_value></tool_call>",
     ("", [("find", '{"q": true}')])),
    ("glm", "<tool_call>find<arg_key>q</arg_key>?", ("<arg_key>q</arg_key>?", [("find", "{}")])),
    ("glm", '<tool_call>{"name": "find"}</tool_call>', ('<tool_call>{"name": "find"}</tool_call>', [])),
    ("deepseek", f"{OPEN}{DEEPSEEK}{CLOSE}", ("", [CALL])),
    ("deepseek", f"Ok.{OPEN}{DEEPSEEK}\n{BARE_FIND}{CLOSE} So.", ("Ok. So.", [CALL, FIND])),
    ("deepseek", DEEPSEEK, ("", [CALL])),
    ("deepseek_bare", f"{OPEN}{BARE_FIND}{DEEPSEEK}{CLOSE}", ("", [FIND, CALL])),
    ("deepseek", f"{OPEN}Nothing.{CLOSE}", (f"{OPEN}Nothing.{CLOSE}", [])),
    ("granite", f'<|tool_call|>[{{"name": "find", "arguments": {{"q": 1}}}}, {HERMES[12:-13]}]', ("", [FIND, CALL])),
    ("granite", '<|tool_call|>{"name": "find", "arguments": {"q": 1}}<|/tool_call|>', ("", [FIND])),
    ("granite", '<|tool_call|>[{"name": "find", "arguments": {"q": 1}}]<|/tool_call|>', ("", [FIND])),
    ("functools", f'functools[{{"name": "find", "arguments": {{"q": 1}}}}, {HERMES[12:-13]}]', ("", [FIND, CALL])),
    ("functools", "functools[0] is an element", ("functools[0] is an element", [])),
    ("pythonic", f"[{PYTHON}]", ("", [CALL])),
    ("pythonic", f" [{PYTHON}, find(q = 1)]", ("", [CALL, FIND])),
    ("pythonic", f"<|python_start|>[{PYTHON}]<|python_end|>", ("", [CALL])),
    ("pythonic", "[find()]", ("", [("find", "{}")])),
    ("pythonic", "[1] says: see [2].", ("[1] says: see [2].", [])),
    ("pythonic", "[find(it)]", ("[find(it)]", [])),
    ("pythonic", "[other(q=1)]", ("[other(q=1)]", [])),
    ("pythonic", "[find(q=1", ("", [("find", '{"q": 1')])),
    ("pythonic", "[find(q=1, p=oops)] x", (" p=oops)] x", [("find", '{"q": 1}')])),
    ("pythonic", '[find(q="a, (b)\n\\"c")] x', (" x", [("find", '{"q": "a, (b)\\n\\"c"}')])),
]  # fmt: skip


def read(form: ToolFormat, pieces: list[str]) -> Parsed:
    """Content, and the calls with their arguments."""
    parser = ToolParser(form, {"weather": SCHEMA, "find": {}})
    found: list[ToolPiece] = [piece for text in pieces for piece in parser.push(text)] + parser.finish()
    calls: list[tuple[str, str]] = []
    content = ""
    for piece in found:
        if isinstance(piece, ContentPiece):
            content += piece.text
        elif isinstance(piece, CallStart):
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        else:
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    assert parser.num_calls == len(calls)
    return content, calls


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_calls_are_found_and_everything_else_stays_text(form: ToolFormat, text: str, expected: Parsed) -> None:
    assert read(form, [text]) == expected


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_it_makes_no_difference_where_the_text_is_cut(form: ToolFormat, text: str, expected: Parsed) -> None:
    assert read(form, list(text)) == expected
    for cut in range(len(text)):
        assert read(form, [text[:cut], text[cut:]]) == expected


PARTS = st.lists(
    st.sampled_from([
        *MARKERS, "[", "]", "{", "}", '"', "'", ",", ";", ")", "```", " ", "\n", "text", "find", "find(q=", "find()",
        '{"name": "find", ', '"arguments": ', '"parameters": {', '"q": 1', LLAMA, HERMES, QWEN, GLM, DEEPSEEK,
        BARE_FIND, PYTHON, "<function=find>", "<parameter=q>", "</parameter>", "</function>", "functools[",
    ]),
    max_size=16,
)  # fmt: skip


@given(form=st.sampled_from(list(DIALECTS)), parts=PARTS, cuts=st.lists(st.integers(0, 300), max_size=4))
def test_any_text_is_read_alike_however_it_is_cut(form: ToolFormat, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert read(form, [text[a:b] for a, b in itertools.pairwise(bounds)]) == read(form, [text])


@given(form=st.sampled_from(list(DIALECTS)), text=st.text())
def test_an_answer_without_calls_is_passed_on_as_it_is(form: ToolFormat, text: str) -> None:
    assert read(form, list(text)) == (text, [])


@given(form=st.sampled_from(list(DIALECTS)), parts=PARTS)
def test_what_is_no_call_is_kept_to_the_letter(form: ToolFormat, parts: list[str]) -> None:
    text = "".join(parts)
    content, calls = read(form, [text])
    assert calls or content == text


def test_a_call_is_announced_before_its_arguments_are_complete() -> None:
    parser = ToolParser("hermes", ["find"], new_id=lambda: "call_1")
    assert parser.push('<tool_call>\n{"name": "find", "arguments"') == []
    assert parser.push(': {"q": "na') == [CallStart(0, "call_1", "find"), ArgumentsPiece(0, '{"q": "na')]
    assert parser.push('vy"}') == [ArgumentsPiece(0, 'vy"}')]
    assert parser.push("}\n</tool_call>") == []
    assert parser.finish() == []


def test_ids_are_those_that_the_models_templates_take() -> None:
    starts = [ToolParser("hermes").push(HERMES)[0], ToolParser("mistral").push(MISTRAL)[0]]
    assert all(isinstance(start, CallStart) for start in starts)
    hermes, mistral = (start.id for start in starts if isinstance(start, CallStart))
    assert hermes.startswith("call_")
    assert len(mistral) == 9
    assert mistral.isalnum()


@given(value=st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.booleans()), max_size=4))
def test_arguments_come_out_as_they_were_written(value: dict[str, object]) -> None:
    text = json.dumps({"name": "find", "arguments": value}, ensure_ascii=False)
    content, calls = read("hermes", list(f"<tool_call>{text}</tool_call>"))
    assert content == ""
    assert json.loads(calls[0][1]) == value
