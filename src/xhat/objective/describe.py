"""What an object is, as the Python that would make it: for messages, notebooks and the record of a run."""

import functools
import inspect
import zlib
from typing import Any

from torch import Tensor

DEEPEST = 5


def described(part: Any, depth: int = 0) -> str:
    """min_snr(5), Denoising(x0, weighting=min_snr(5)), every(4): names and arguments that are not the defaults.

    The arguments of an object are those of its attributes that its constructor has parameters for. The same object gives the
    same text in every process.
    """
    if part is None or isinstance(part, bool | int | str):
        return repr(part)
    if isinstance(part, float):
        return f"{part:g}"
    if isinstance(part, Tensor):
        return f"tensor{tuple(part.shape)}:{zlib.crc32(part.detach().cpu().contiguous().numpy().data):08x}"
    if isinstance(part, tuple | list):
        inner = ", ".join(described(p, depth + 1) for p in part)
        return f"({inner})" if isinstance(part, tuple) else f"[{inner}]"
    if inspect.isroutine(part) or inspect.isclass(part):
        return str(getattr(part, "__name__", type(part).__name__))
    if isinstance(part, functools.partial):
        return f"partial({described(part.func, depth + 1)})"
    return f"{type(part).__name__}({_arguments(part, depth + 1)})" if depth < DEEPEST else type(part).__name__


def _arguments(part: Any, depth: int) -> str:
    """Plain values, and parts that differ from the defaults; by place as far as nothing is left out before."""
    try:
        parameters = inspect.signature(type(part)).parameters.values()
    except (TypeError, ValueError):
        return ""
    said, by_place = [], True
    for p in parameters:
        named = p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY) and hasattr(part, p.name)
        value = getattr(part, p.name) if named else None
        text, plain = _named(value, depth), isinstance(value, int | float | str) and not isinstance(value, bool)
        if not named or (p.default is not p.empty and not plain and text == _named(p.default, depth)):
            by_place = False
            continue
        said.append(text if by_place and p.kind is not p.KEYWORD_ONLY else f"{p.name}={text}")
    return ", ".join(said)


def _named(value: Any, depth: int) -> str:
    name = getattr(value, "name", None)
    return name if isinstance(name, str) and type(value).__name__ == "Target" else described(value, depth)
