"""Names in configs become objects here: `min_snr(5)`, `cosine(logsnr_max=10)`, `image_loss(total_variation)`.

An expression is a name, a literal, or a call of a name with expressions as arguments: the Python that a user would write,
read by Python's own parser and evaluated against a table of names. Nothing else is possible in it.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from xhat.errors import ConfigError

Names = Mapping[str, Any]


def evaluate(text: str, names: Names, context: Mapping[str, Any] | None = None) -> Any:
    """The object that `text` describes.

    Args:
        text: the expression.
        names: what each name stands for. A bare name of something marked by `factory` is called without arguments.
        context: values for parameters of the outermost call that the expression leaves out (sizes known from the data).

    Raises:
        ConfigError: with the nearest names, or the signature.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ConfigError(f'cannot read "{text}": write a name or a call such as min_snr(5)') from None
    return _value(tree, text, names, context or {})


class Factory:
    """Marks a name that needs no parentheses when all its arguments have defaults: `cosine` for `cosine()`."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _value(node: ast.expr, text: str, names: Names, context: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        found = _look_up(node.id, names)
        return _call(node.id, found.make, [], {}, context) if isinstance(found, Factory) else found
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        found = _look_up(node.func.id, names)
        make = found.make if isinstance(found, Factory) else found
        arguments = [_value(a, text, names, {}) for a in node.args]
        keywords = {k.arg: _value(k.value, text, names, {}) for k in node.keywords if k.arg is not None}
        return _call(node.func.id, make, arguments, keywords, context)
    try:
        return ast.literal_eval(node)
    except (ValueError, SyntaxError):
        raise ConfigError(f'cannot read "{text}": only names, calls and plain values are allowed') from None


def _look_up(name: str, names: Names) -> Any:
    if name in names:
        return names[name]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names))}"
    raise ConfigError(f'unknown name "{name}": {hint}')


def _call(name: str, make: Any, args: list[Any], kwargs: dict[str, Any], context: Mapping[str, Any]) -> Any:
    if not callable(make):
        raise ConfigError(f"{name} takes no arguments: write {name} alone")
    signature = inspect.signature(make)
    try:
        bound = signature.bind_partial(*args, **kwargs)
        extra = {k: v for k, v in context.items() if k in signature.parameters and k not in bound.arguments}
        signature.bind(*args, **kwargs, **extra)
    except TypeError as error:
        raise ConfigError(f"{name}{_plain(signature)}: {error}") from None
    for key, value in bound.arguments.items():
        _check_type(name, key, value, signature.parameters[key].annotation)
    try:
        return make(*args, **kwargs, **extra)
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, ImportError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # of an argument that the maker did not foresee; its first line is the user's
        raise ConfigError(f"{name}: {str(error).strip().splitlines()[0]}") from None


def _check_type(name: str, key: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if not isinstance(value, tuple) or not all(isinstance(v, inner) for v in value):
            raise ConfigError(f"{name}: {key} must be several {inner.__name__}s in brackets, such as (1, 2), got {value!r}")
    allowed = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}.get(annotation)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and annotation is not bool)):
        raise ConfigError(f"{name}: {key} must be a {annotation.__name__}, got {value!r}")


def _plain(signature: inspect.Signature) -> str:
    parts = []
    for p in signature.parameters.values():
        simple = isinstance(p.default, int | float | str | tuple | None)
        parts.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}" if simple else f"{p.name}=...")
    return f"({', '.join(parts)})"
