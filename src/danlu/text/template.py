"""Renders a model's own Jinja template as untrusted code: no reach, and bounds on steps, memory, time and output.

Jinja's sandbox keeps a template from reaching anything but its variables; it does not keep it from running for ever or
from filling the memory. Here every loop turn, call, filter, comparison and join is metered: the parsed template is
rewritten so that loops count, and everything that makes a text or list asks the meter first. It needs no signals, so it
works in every thread. Knows nothing of messages, roles or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from danlu.core.errors import ModelError
from danlu.text.meter import (
    ALL_FILTERS,
    METER,
    LimitError,
    Meter,
    check_method,
    check_percent,
    metered_test,
    strftime_now,
    text_of,
)

GENERATION_OPEN, GENERATION_CLOSE = "\ufdd3", "\ufdd4"
"""Stand around what a template has between its generation tags: noncharacters of Unicode, never part of real text."""

MAX_TEMPLATE_CHARACTERS = 100_000
_MAX_INTEGER_BITS = 4096

_TEXT_METHODS = frozenset("""
    capitalize casefold center count endswith find format index isalnum isalpha isdecimal isdigit islower
    isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace
    rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
""".split())  # fmt: skip  # noqa: SIM905
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, frozenset(("items", "keys", "values", "get"))),
    ((list, tuple), frozenset(("index", "count"))),
    ((int, float, bytes, range, type(None)), frozenset()),
)


class Template:
    """One compiled template; ``render`` may be called from several threads at once."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"The chat template has {len(source)} characters.", "It cannot be a real one.")
        try:
            self._template = _Environment().from_string(source)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            raise ModelError(f"The chat template is broken: {error}", "Fetch the model again.") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. What the template does wrong comes out as whatever exception it raised; limits as LimitError."""
        meter = Meter(variables)
        token = METER.set(meter)
        pieces: list[str] = []
        try:
            for piece in self._template.generate(variables):
                meter.write(len(piece))
                pieces.append(piece)
        finally:
            METER.reset(token)
        return "".join(pieces)


class _Guard(NodeTransformer):
    """Rewrites a parsed template so that what Jinja offers no hook for is metered too."""

    def _call(self, name: str, node: nodes.Node, *arguments: nodes.Expr) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("step", node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._call("step", node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return self._call("joined", node, *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("made", node, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        for side in (node, *node.ops):
            if not isinstance(side.expr, nodes.Const):
                side.expr = self._call("looked", side, side.expr)
        return node

    def _literal(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._call("made", node, node)

    visit_List = visit_Tuple = visit_Dict = _literal


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: what the assistant writes, marked at both ends."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = nodes.Call(nodes.EnvironmentAttribute("generated"), [], [], None, None, lineno=lineno)
        return nodes.CallBlock(marked, [], [], body, lineno=lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a meter at every door."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before the meter runs
            extensions=[LoopControlExtension, _Generation],
            finalize=_finalize,
        )
        self.globals = {
            "raise_exception": _raise_from_template,
            "strftime_now": strftime_now,
            "namespace": _Namespace,
            **{name: self.globals[name] for name in ("range", "dict")},
            "cycler": Cycler,
            "joiner": Joiner,
        }
        self.filters = dict(ALL_FILTERS)
        self.tests = {name: metered_test(test) for name, test in self.tests.items() if name not in ("filter", "test")}
        self._own = (self.step, self.made, self.looked, self.joined, self.generated)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Guard().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    # what the rewritten template calls

    def step(self) -> bool:
        """A loop turns."""
        return METER.get().step()

    def made(self, value: Any) -> Any:
        """A literal or slice was made."""
        return METER.get().made(value)

    def looked(self, value: Any) -> Any:
        """One side of a comparison."""
        meter = METER.get()
        meter.step()
        if isinstance(value, str):
            meter.spend(len(value) // 16)
        elif isinstance(value, (list, tuple, dict)):
            meter.spend(meter.size(value))
        return value

    def joined(self, *values: Any) -> str:
        """The operator ``~``."""
        return self.concat(map(text_of, values))

    def generated(self, caller: Callable[[], str]) -> str:
        """A generation block."""
        return self.concat((GENERATION_OPEN, caller(), GENERATION_CLOSE))

    # what Jinja calls

    def concat(self, values: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Joins what a macro, block or ``~`` has gathered."""
        meter, pieces = METER.get(), list(values)
        meter.spend(sum(map(len, pieces)) + len(pieces))
        return "".join(pieces)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kinds, methods in _METHODS:
            if isinstance(obj, kinds):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def call(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Context, obj: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        if obj in self._own:
            return obj(*args, **{name: value for name, value in kwargs.items() if name == "caller"})
        meter = METER.get()
        meter.step()
        method = getattr(obj, "__wrapped__", obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            args = check_method(meter, owner, method.__name__, args, kwargs)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        meter.step()
        if operator == "%" and isinstance(left, str):
            check_percent(meter, left, right)
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    meter.spend(len(cast("str", one)) * max(other, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise LimitError("it computes with numbers of thousands of digits")
        return meter.made(super().call_binop(context, operator, left, right))


class _Namespace(Namespace):
    """Jinja's, without private names, and written out in one word (its contents may be knotted)."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the name {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _raise_from_template(message: object) -> None:
    raise TemplateError(str(message))


@pass_context
def _finalize(context: Context, value: Any) -> str:
    return text_of(value)
