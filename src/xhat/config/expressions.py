"""Names in configs become objects here: `min_snr(5)`, `cosine(logsnr_max=10)`, `image_loss(total_variation)`.

An expression is a name, a literal, or a call of a name with expressions as arguments: the Python that a user would write,
read by Python's own parser and evaluated against a table of names. Nothing else is possible in it.
"""

import ast
import difflib
import inspect
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from xhat.config.syntax import parse_expression
from xhat.errors import ConfigError, DataError, first_line

Names = Mapping[str, Any]
LARGEST = 1_000_000
"""Of the whole numbers in an expression: steps, layers, entries of a table."""


def evaluate(text: str, names: Names, context: Mapping[str, Any] | None = None) -> Any:
    """The object that `text` describes.

    Args:
        text: the expression.
        names: what each name stands for. A bare name of a class or function whose parameters all have defaults is called:
            `cosine` is `cosine()`.
        context: values for parameters of the outermost call that the expression leaves out (sizes known from the data).

    Raises:
        ConfigError: with the nearest names, or the signature.
    """
    tree = parse_expression(text)
    return _value(tree, text, names, context or {})


def _value(node: ast.expr, text: str, names: Names, context: Mapping[str, Any]) -> Any:
    if (name := _dotted(node)) is not None:
        found = _look_up(name, names)
        return _call(name, found, [], {}, context) if _needs_nothing(found, context) else found
    if isinstance(node, ast.Call) and (name := _dotted(node.func)) is not None:
        arguments = [_value(a, text, names, {}) for a in node.args]
        keywords = {k.arg: _value(k.value, text, names, {}) for k in node.keywords if k.arg is not None}
        return _call(name, _look_up(name, names), arguments, keywords, context)
    try:
        return ast.literal_eval(node)
    except (ValueError, SyntaxError):
        raise ConfigError(f'cannot read "{text}": only names, calls and plain values are allowed') from None


def _dotted(node: ast.expr) -> str | None:
    """A name, also one such as Discrete.linear_beta; None if the node is another expression."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _needs_nothing(made: Any, context: Mapping[str, Any]) -> bool:
    """Whether it makes something without further arguments; an object is there already."""
    if not (inspect.isclass(made) or inspect.isroutine(made)):
        return False
    parameters = typed_signature(made).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional or p.name in context for p in parameters)


def _look_up(name: str, names: Names) -> Any:
    if name in names:
        return names[name]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names))}"
    raise ConfigError(f'unknown name "{name}": {hint}')


def _call(name: str, make: Any, args: list[Any], kwargs: dict[str, Any], context: Mapping[str, Any]) -> Any:
    if not callable(make):
        raise ConfigError(f"{name} takes no arguments: write {name} alone")
    takes = typed_signature(make)
    try:
        bound = takes.bind_partial(*args, **kwargs)
        extra = {k: v for k, v in context.items() if k in takes.parameters and k not in bound.arguments}
        takes.bind(*args, **kwargs, **extra)
    except TypeError as error:
        raise ConfigError(f"{name}{_plain(takes)}: {error}{_nearest(kwargs, takes)}") from None
    for key, value in bound.arguments.items():
        parameter = takes.parameters[key]
        for one in value if parameter.kind is parameter.VAR_POSITIONAL else (value,):
            _check_type(name, key, one, parameter.annotation)
    try:
        return make(*args, **kwargs, **extra)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # of an argument that the maker did not foresee, or of a user's own code: its first line
        raise ConfigError(f"{name}: {first_line(error)}") from error


def typed_signature(make: Any) -> inspect.Signature:
    """With annotations as types, also where a file has them as text.

    Raises:
        TypeError or ValueError: of what cannot be called, or of some built-in functions.
    """
    try:
        return inspect.signature(make, eval_str=True)
    except Exception:  # a name that exists only for type checkers: then the parameter takes anything
        return inspect.signature(make)


def _nearest(keywords: Mapping[str, Any], signature: inspect.Signature) -> str:
    """The parameter that a wrong keyword may have meant."""
    wrong = next((key for key in keywords if key not in signature.parameters), None)
    close = difflib.get_close_matches(wrong, signature.parameters, n=1, cutoff=0.5) if wrong else []
    return f": did you mean {close[0]}?" if close else ""


def _check_type(name: str, key: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if not isinstance(value, tuple) or not all(isinstance(v, inner) for v in value):
            raise ConfigError(f"{name}: {key} must be several {inner.__name__}s in brackets, such as (1, 2), got {value!r}")
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(n, int) and abs(n) > LARGEST for n in numbers) and annotation in (int, int | None, tuple[int, ...]):
        raise ConfigError(f"{name}: {key} must be at most {LARGEST:,}, got {value}")
    allowed = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}.get(annotation)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and annotation is not bool)):
        raise ConfigError(f"{name}: {key} must be a {annotation.__name__}, got {value!r}")


def signature_of(name: str, make: Any) -> str:
    """name(parameter, other=default), as in messages."""
    return f"{name}{_plain(typed_signature(make))}"


def _plain(signature: inspect.Signature) -> str:
    parts = []
    for p in signature.parameters.values():
        simple = isinstance(p.default, int | float | str | tuple | None)
        parts.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}" if simple else f"{p.name}=...")
    return f"({', '.join(parts)})"
