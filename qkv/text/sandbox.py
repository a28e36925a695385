"""jinja2 for templates that come with models, written by strangers: no way out, and no way to run on.

jinja2's immutable sandbox keeps a template from Python's internals. It does not keep one from looping for ever or from
asking for a gigabyte in one step, so here a rendering pays for its work out of a budget: a fixed price for a step, and
the size of every text or container that is made, printed, compared or looped over. Before a template is compiled,
`_Meter` puts filters around its expressions that do the paying. What could be huge before its size is seen ('a' * n,
replace, join, indent) is paid in advance. Filters, tests and methods are those that published chat templates use; what
is not listed does not exist, since so many of jinja2's take a width.

A budget is counted, not timed, so a template that renders once always renders; only `strftime_now` asks a clock. A
budget that is spent is a CheckpointError, as is any error within a template; `raise_exception`, by which templates
refuse conversations, is an InputError. Left out: includes, blocks and imports, which no chat template can use.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qkv.errors import CheckpointError, InputError, shorten

MAX_SOURCE = 1 << 15  # characters; the longest published templates have 20,000
BUDGET = 2_000_000  # of one rendering, and as much again for every 20,000 characters of its variables
STEP = 16  # the price of an expression; one character or item of anything costs 1
_DEPTH = 32  # of lists within lists

_STRING_METHODS = {
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace"),
    *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
    *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
}
_METHODS: dict[type, set[str]] = {
    str: _STRING_METHODS,
    list: {"count", "index"},
    tuple: {"count", "index"},
    dict: {"get", "items", "keys", "values"},
}
_FILTERS = (
    *("abs", "capitalize", "count", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list"),
    *("lower", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "string", "title", "trim"),
    *("unique", "upper"),
)
_TESTS = (
    *("boolean", "defined", "divisibleby", "even", "false", "float", "integer", "iterable", "lower", "mapping", "none"),
    *("number", "odd", "sequence", "string", "true", "undefined", "upper"),
)
_COMPARISONS = (
    *("in", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">="),
)
_REFUSED = (
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block),
    *(nodes.CallBlock, nodes.EvalContextModifier),
)
_WITHOUT_WORK = {"count", "default", "first", "last", "length"}
_STRFTIME = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,80}")  # a width could ask for any amount of memory


class _RefusedError(Exception):
    """The template called raise_exception."""


class _SpentError(Exception):
    """The rendering has done all it may."""


class _Context(Context):
    """One rendering's variables, and what is left of its budget."""

    left = BUDGET

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _SpentError("it does more work than any chat needs")

    def pay(self, value: object, strict: bool = True) -> None:
        """For the size of a value. `strict`: it must be data, which can be printed at this price."""
        self.spend(STEP + self._size(value, strict, 0))

    def paid(self, value: Any) -> Any:
        """Something new, which may also be what templates only call or set aside."""
        self.pay(value, strict=False)
        return value

    def _size(self, value: object, strict: bool, depth: int) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 8
        if isinstance(value, range):
            return len(value)
        if isinstance(value, Collection):
            if depth == _DEPTH:
                raise _SpentError(f"its lists are more than {_DEPTH} deep")
            total = len(value)
            parts: Iterable[object] = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            for part in parts:
                total += self._size(part, True, depth + 1)
                if total > self.left:  # lists of lists of lists may stand for more than could ever be counted
                    raise _SpentError("its lists are too large")
            return total
        if strict and not (value is None or isinstance(value, float | Undefined)):
            raise _SpentError(f"a {type(value).__name__} is used as text or data")
        return 1


class _Meter(NodeTransformer):
    """Puts filters that pay around expressions; what calls, filters and sums make is paid for where they are run."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, _REFUSED):
            raise jinja2.TemplateSyntaxError(f"{type(node).__name__} has no use in a chat template", node.lineno)
        node = self.generic_visit(node)
        match node:
            case nodes.Output():
                node.nodes = [_wrap(_const(part), " shown") for part in node.nodes]
            case nodes.Concat():
                node.nodes = [_wrap(part, " shown") for part in node.nodes]
                return _wrap(node, " made")
            case nodes.Compare() | nodes.Operand():
                node.expr = _wrap(node.expr, " made")
            case nodes.For():
                node.iter = _wrap(node.iter, " each")
            case nodes.Name(ctx="load") | nodes.Getattr() | nodes.Getitem():
                return _wrap(node, " made" if isinstance(getattr(node, "arg", None), nodes.Slice) else " step")
            case nodes.Tuple(ctx="load") | nodes.List() | nodes.Dict():
                return _wrap(node, " made")
        return node


def _wrap(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _const(node: nodes.Node) -> nodes.Node:
    """The template's own text as an expression, for it is paid for too."""
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


class _Generation(Extension):
    """{% generation %} marks, for training, what the model itself says; it changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012  as the base has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    context_class = _Context
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        listed = {name: _metered(name) for name in _FILTERS}
        ours = {"join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson, "d": listed["default"]}
        meters = {" made": _made, " shown": _shown, " each": _each, " step": _step, "safe": _shown}
        self.filters = listed | ours | meters
        self.tests = {name: TESTS[name] for name in _TESTS} | {name: _compared(name) for name in _COMPARISONS}
        self.globals = {
            "range": self.globals["range"],  # the sandbox's own, of at most 100,000
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return isinstance(obj, LoopContext | Namespace) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing may be formatted: a width could ask for any amount of memory."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as overridden
        assert isinstance(__context, _Context)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | list | tuple):
            __context.pay(owner)
            if __obj.__name__ in ("join", "replace"):
                ours: Any = _joined_by if __obj.__name__ == "join" else _replace
                given = {key: value for key, value in kwargs.items() if not key.startswith("_")}  # not jinja2's own
                return ours(__context, owner, *args, **given)
        return __context.paid(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        assert isinstance(context, _Context)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator == "%" and not numbers):
            raise _SpentError(f"it uses {operator}, which can ask for any amount of memory")
        if operator == "*":
            context.spend(_product_size(left, right) + _product_size(right, left))
        return context.paid(super().call_binop(context, operator, left, right))


def _product_size(value: Any, count: Any) -> int:
    if isinstance(value, int) and isinstance(count, int):
        return value.bit_length() * count.bit_length()
    return len(value) * max(count, 0) if isinstance(value, str | list | tuple) and isinstance(count, int) else 0


class Template:
    """A compiled template. CheckpointError if it is none, or too long."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise CheckpointError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are read")
        environment = _Environment()
        try:
            tree = _Meter().visit(environment.parse(source))
            code = environment.compile(tree)
        except jinja2.TemplateSyntaxError as error:
            reason = shorten(str(error.message), 200)
            raise CheckpointError(f"the chat template is broken in line {error.lineno}: {reason}") from error
        except Exception as error:  # nested too deep for the parser or for Python
            raise CheckpointError(f"the chat template cannot be compiled: {shorten(str(error), 200)}") from error
        self._template = jinja2.Template.from_code(environment, code, environment.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """InputError with the template's own words if it refuses these; CheckpointError if it fails or runs on."""
        context = self._template.new_context(dict(variables))
        assert isinstance(context, _Context)
        context.left = 1 << 62
        for value in variables.values():
            context.pay(value)
        size = (1 << 62) - context.left
        context.left = BUDGET + BUDGET // 20_000 * size
        try:
            return "".join(self._template.root_render_func(context))
        except _RefusedError as error:
            raise InputError(f"the model's chat template refuses this: {shorten(str(error), 200)}") from error
        except Exception as error:  # a template can raise anything that Python can
            kind = "" if isinstance(error, _SpentError) else f"{type(error).__name__}: "
            raise CheckpointError(f"the model's chat template fails: {kind}{shorten(str(error), 200)}") from error


@jinja2.pass_context
def _made(context: _Context, value: Any) -> Any:
    return context.paid(value)


@jinja2.pass_context
def _step(context: _Context, value: Any) -> Any:
    context.spend(STEP + len(value) if isinstance(value, str) else STEP)
    return value


@jinja2.pass_context
def _each(context: _Context, value: Any) -> Any:
    context.spend(STEP + STEP * len(value) if hasattr(value, "__len__") else STEP)
    return value


@jinja2.pass_context
def _shown(context: _Context, value: Any) -> Any:
    context.pay(value)
    return value


def _metered(name: str) -> Any:
    """jinja2's own filter of this name, paid for by the size of what it is given. Nothing is left to be done later."""
    work: Any = FILTERS[name]
    passed = getattr(work, "jinja_pass_arg", None)

    @jinja2.pass_context
    def run(context: _Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in _WITHOUT_WORK:
            context.pay(value)
            _each(context, value)
        first = {"context": context, "environment": context.environment, "eval_context": context.eval_ctx}
        result = work(*([first[passed.name]] if passed else []), value, *args, **kwargs)
        return context.paid(list(result) if isinstance(result, Iterator) else result)

    return run


def _compared(name: str) -> Any:
    """jinja2's own test of this name, paid for by the sizes of both sides."""
    compare: Any = TESTS[name]

    @jinja2.pass_context
    def run(context: _Context, value: Any, other: Any) -> bool:
        context.pay(value, strict=False)
        context.pay(other, strict=False)
        return bool(compare(value, other))

    return run


@jinja2.pass_context
def _replace(context: _Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    for part in (value, old, new):
        context.pay(part)
    text, most = str(value), -1 if count is None else count
    hits = text.count(str(old))
    context.spend(len(str(new)) * (hits if most < 0 else min(hits, most)))
    return text.replace(str(old), str(new), most)


@jinja2.pass_context
def _join(context: _Context, value: Any, d: str = "") -> str:
    context.pay(value)
    parts = [str(part) for part in value]
    context.spend(len(d) * len(parts))
    return d.join(parts)


def _joined_by(context: _Context, separator: str, parts: Any) -> str:
    return str(_join(context, parts, separator))


@jinja2.pass_context
def _indent(context: _Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    context.pay(value)
    context.spend((str(value).count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return do_indent(str(value), width, first, blank)


@jinja2.pass_context
def _tojson(
    context: _Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: without HTML's escapes."""
    context.pay(value)
    if indent is not None:
        if not isinstance(indent, int) or indent > 8:
            raise _SpentError("tojson indents by at most 8 spaces")
        for _ in range(STEP):
            context.pay(value)
    if separators is not None and any(len(part) > 8 for part in separators):
        raise _SpentError("tojson's separators have at most 8 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise _RefusedError(message)


def _strftime_now(form: str) -> str:
    if not _STRFTIME.fullmatch(form):
        raise _SpentError(f"strftime_now takes no {shorten(repr(form))}")
    return datetime.now().strftime(form)
