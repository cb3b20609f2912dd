"""What an object is, as the Python that would make it: for messages, notebooks and the record of a run."""

import functools
import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.tensors import bytes_of

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
    if isinstance(part, Tensor | np.ndarray):
        kind, checksum = "tensor" if isinstance(part, Tensor) else "array", zlib.crc32(bytes_of(torch.as_tensor(part)))
        return f"{kind}{tuple(part.shape)}:{checksum:08x}"
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(value, depth + 1)}" for key, value in part.items()) + "}"
    if isinstance(part, tuple | list):
        inner = ", ".join(described(p, depth + 1) for p in part)
        return f"({inner})" if isinstance(part, tuple) else f"[{inner}]"
    if inspect.isclass(part):
        return part.__name__
    if inspect.isroutine(part):
        return _function(part, depth + 1)
    if isinstance(part, functools.partial):
        given = [described(a, depth + 1) for a in (part.func, *part.args)]
        given += [f"{name}={described(value, depth + 1)}" for name, value in part.keywords.items()]
        return f"partial({', '.join(given)})"
    return f"{type(part).__name__}({_arguments(part, depth + 1)})" if depth < DEEPEST else type(part).__name__


def _function(part: Any, depth: int) -> str:
    """Its name; of one that a function has made also what it was made with: penalty[source=1], or what a lambda is of."""
    part = inspect.unwrap(part)
    name, code = str(getattr(part, "__name__", type(part).__name__)), getattr(part, "__code__", None)
    cells = zip(getattr(code, "co_freevars", ()), getattr(part, "__closure__", None) or (), strict=False)
    inner = [f"{free}={described(_content(cell), depth)}" for free, cell in cells] if depth < DEEPEST else []
    if name == "<lambda>" and code is not None:
        inner.append(f"code {zlib.crc32(code.co_code + repr(code.co_consts + code.co_names).encode()):08x}")
    return f"{name}[{', '.join(inner)}]" if inner else name


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


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
