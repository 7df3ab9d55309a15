"""Templates as strangers write them: what they may not reach, and that none runs long, fills memory or writes much."""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import Any

import pytest

from danlu.core.errors import ModelError
from danlu.text.meter import MAX_SECONDS, LimitError
from danlu.text.template import GENERATION_CLOSE, GENERATION_OPEN, Template

VARIABLES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "bos_token": "<s>"}
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
BIG = "('b' * 1000000)"
LIST = "{% set x = range(99999) | list %}{% set y = range(99999) | list %}"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


STEPS, NESTS = "it takes more than 500,000 steps", "it nests more lists"
TEXT = f"it makes more text than any conversation needs|its text is far longer than the messages|{NESTS}"
HOSTILE = {
    "nested loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", STEPS),
    "loops that filter everything out": ("{% for i in range(99999) if i < 0 %}{% endfor %}" * 99, STEPS),
    "filters over ranges": ("{{ range(99999) | map('string') | select('string') | join | length }}" * 99, STEPS),
    "macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        STEPS,
    ),
    "macros without end": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "maximum recursion depth"),
    "loops without end": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "maximum recursion depth"),
    "blocks without end": ("{% block a %}{{ self.a() }}{% endblock %}", "maximum recursion depth"),
    "a huge range": ("{{ range(10 ** 9) }}", "Range too big"),
    "multiplied text": ("{{ 'a' * 10 ** 9 }}", TEXT),
    "a multiplied list": ("{{ [1] * 10 ** 9 }}", TEXT),
    "powers": ("{{ 10 ** (10 ** 10) }}", "it computes with numbers of thousands of digits"),
    "big factors": ("{{ 9 ** 999 * 9 ** 999 }}", "it computes with numbers of thousands of digits"),
    "doubling with ~": (grow("'a'", "ns.x ~ ns.x"), TEXT),
    "doubling with +": (grow("'a'", "ns.x + ns.x"), TEXT),
    "doubling with %": (grow("'a'", "'%s%s' % (ns.x, ns.x)"), TEXT),
    "doubling with format": (grow("'a'", "'{0}{0}'.format(ns.x)"), TEXT),
    "doubling with join": (grow("'a'", "[ns.x, ns.x] | join"), TEXT),
    "doubling with replace": (grow("'aa'", "ns.x | replace('a', 'aa')"), TEXT),
    "doubling a set block": ("{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 99, TEXT),
    "doubling a list": (grow("[1]", "ns.x + ns.x"), TEXT),
    "lists in lists": (grow("[1]", "[ns.x, ns.x]"), NESTS),
    "objects in objects": (grow("{}", "{'a': ns.x, 'b': ns.x}"), NESTS),
    "dict() in dict()": (grow("{}", "dict(a=ns.x, b=ns.x)"), NESTS),
    "summed lists": ("{{ ([range(9999) | list] * 9) | sum(start=[]) }}", "only numbers can be summed"),
    "| center": ("{{ 'a' | center(1000000000) }}", TEXT),
    ".center": ("{{ 'a'.center(10 ** 9) }}", TEXT),
    ".zfill": ("{{ 'a'.zfill(10 ** 9) }}", TEXT),
    "| indent": ("{{ 'a\nb' | indent(10 ** 9) }}", TEXT),
    "| replace": (f"{{{{ {BIG} | replace('b', {BIG}) }}}}", TEXT),
    ".replace": (f"{{{{ {BIG}.replace('', {BIG}) }}}}", TEXT),
    ".join": (f"{{{{ {BIG}.join({BIG}) }}}}", STEPS),
    "| join": (f"{{{{ 'bbbbbbbbbb' | list | join({BIG}) }}}}{{{{ ('b' * 99) | join({BIG}) }}}}", TEXT),
    ".split": (f"{{{{ {BIG}.split('b') | length }}}}", TEXT),
    "% width": ("{{ '%1000000000d' % 1 }}", "it formats to a huge width"),
    "% star": ("{{ '%*d' % (1000000000, 1) }}", "it formats to a huge width"),
    "| format": ("{{ '%1000000000d' | format(1) }}", "it formats to a huge width"),
    ".format": ("{{ '{:1000000000}'.format(1) }}", "it formats to a huge width"),
    ".format nested": ("{{ '{:{}}'.format(1, 1000000000) }}", "it formats to a huge width"),
    "| batch": ("{{ [1] | batch(10 ** 9, 'x') | list }}", TEXT),
    "| round": ("{{ 1 | round(10 ** 9, 'ceil') }}", "it rounds to more digits than numbers have"),
    "| tojson(indent)": ("{{ [1] | tojson(indent=10 ** 9) }}", "it indents JSON endlessly"),
    "strftime_now": ("{{ strftime_now('%1000000000d') }}", "it asks for an endless date"),
    "output": ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", "its text is far longer than the messages"),
    "comparing lists": (LIST + "{% if x == y %}{% endif %}" * 999, TEXT),
    "searching lists": (LIST + "{% if -1 in x %}{% endif %}" * 999, TEXT),
    "testing lists": (LIST + "{{ x is eq(y) }}" * 2500, TEXT),
    "sorting lists": (LIST + "{{ x | sort | length }}" * 999, TEXT),
    "bytes of numbers": ("{{ (1).to_bytes(10 ** 9, 'big') }}", "access to attribute 'to_bytes'"),
    "tabs": ("{{ 'a\t'.expandtabs(10 ** 9) }}", "access to attribute 'expandtabs'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped_soon_and_small(name: str) -> None:
    template, text = HOSTILE[name]
    compiled = Template(template)
    started = time.thread_time()
    with pytest.raises(Exception, match=text):
        compiled.render(VARIABLES)
    assert time.thread_time() - started < MAX_SECONDS + 1


def test_a_hostile_template_fills_no_memory() -> None:
    keeps = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x, 'a' * 1000000] %}{% endfor %}"
    template = Template(keeps)
    tracemalloc.start()
    with pytest.raises(LimitError, match=TEXT):
        template.render(VARIABLES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_time_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.text.meter.MAX_SECONDS", 0.01)
    with pytest.raises(LimitError, match=r"it runs longer than 0\.01 seconds"):
        Template(HOSTILE["nested loops"][0]).render(VARIABLES)


def test_it_works_in_every_thread() -> None:
    template = Template("{% for i in range(n) %}{{ messages[0]['content'] }}{% endfor %}")
    found: dict[int, str] = {}

    def render(number: int) -> None:
        try:
            found[number] = template.render({**VARIABLES, "n": 9_999 if number % 2 else number})
        except LimitError as error:
            found[number] = str(error)

    endless = Template(HOSTILE["nested loops"][0])
    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    with pytest.raises(LimitError, match=STEPS):
        endless.render(VARIABLES)
    for thread in threads:
        thread.join()
    assert [found[number] for number in (0, 2, 4)] == ["", "hi" * 2, "hi" * 4]
    assert found[1] == "hi" * 9_999


def test_a_long_honest_conversation_is_no_attack() -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "面料 soft " * 300} for i in range(1000)]
    chatml = Template(
        "{% for message in messages %}{% if loop.first and messages[0].role == 'system' %}{% endif %}"
        "{% set content = message['content'] | trim %}{% if '</think>' in content %}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>' + '\n' }}{% endfor %}"
    )
    assert len(chatml.render({"messages": turns})) > 2_000_000
    one = [{"role": "user", "content": "x" * 10_000_000}]
    assert len(chatml.render({"messages": one})) > 10_000_000


@pytest.mark.parametrize(
    "template",
    [
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ dict.mro() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ self._TemplateReference__context['x'] }}",
        "{{ raise_exception.__globals__['x'] }}",
        "{{ step.__self__ }}",
    ],
)
def test_a_template_reaches_nothing(template: str) -> None:
    with pytest.raises(Exception, match=r"unsafe|private|undefined|no attribute|a namespace cannot have"):
        Template(template).render(VARIABLES)


@pytest.mark.parametrize(
    "template",
    [
        *("{% for a in b %}" * 60 + "{% endfor %}" * 60, "{{ " + "(" * 900 + "1" + ")" * 900 + " }}"),
        *("{{ [" * 3000, "{{ " + "not " * 20_000 + "1 }}", "{{ " + "1+" * 20_000 + "1 }}", "{{ 1 | pprint }}"),
        *("{% generation %}", "{% endgeneration %}", "{% if %}"),
    ],
)
def test_a_template_that_cannot_be_read_is_a_model_error(template: str) -> None:
    with pytest.raises(ModelError, match=r"The chat template is broken: .*Fetch the model again"):
        Template(template)


def test_what_honest_templates_use_works_as_in_jinja() -> None:
    template = (
        "{% set a, b = 1, 2 %}{{ a + b }}{{ -7 // 2 }} {{ '%05d|%s' % (3, 'x') }} {{ 'a' 'b' ~ 1 }} "
        "{{ [1, 2, 3][1:] }} "
        "{{ 'x' in ['x'] }} {{ 1 < 2 < 3 }} {{ ['b', 'a'] | sort | join('-') }} {{ {'a': 1} | items | list }} "
        "{{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }} {{ [{'a': 1}, {'a': 2}] | sum('a') }} "
        "{{ [{'a': {'b': 1}}] | join(',', attribute='a.b') }} {{ 'aXb'.split('X') | last }} {{ 2.5 | round | int }} "
        "{{ messages[0].get('x', 'none') }} {{ '{:>5}'.format('ab') }} {{ 'ab' | center(6) }}| {{ range(3) | list }} "
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ '<&' | e }} {{ messages | tojson }} "
        "{% for i in [1, 2, 3] if i != 2 %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %} "
        "{{ {'名': [1, None, true]} | tojson(indent=2) }} {{ 'a\nb' | indent(2) }} {{ undefined_name is defined }}"
    )
    assert Template(template).render(VARIABLES) == (
        "3-4 00003|x ab1 [2, 3] True True a-b [('a', 1)] [1, 2] 3 1 b 2 none    ab   ab  | [0, 1, 2] "
        'role=user;content=hi;&lt;&amp; [{"role": "user", "content": "hi"}] 1False2True '
        '{\n  "名": [\n    1,\n    null,\n    true\n  ]\n} a\n  b False'
    )


def test_generation_tags_mark_what_is_between_them() -> None:
    text = Template("a{% generation %}b{{ bos_token }}{% endgeneration %}c").render(VARIABLES)
    assert text == f"a{GENERATION_OPEN}b<s>{GENERATION_CLOSE}c"
