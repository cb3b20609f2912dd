"""Paths in the expression of a data source, which nobody wants to put in quotes: fields(runs/darcy.npy, units=standard)."""

import ast
import re
from collections.abc import Container, Iterator

_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_NAMED = re.compile(r"(\s*\w+\s*=(?!=)\s*)(.*)", re.DOTALL)
_PLAIN = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.UnaryOp)


def with_quotes(text: str, names: Container[str]) -> str:
    """The expression with quotes around those arguments that are neither values nor names: they are paths.

    Args:
        text: of the expression.
        names: that stand for something.
    """
    found = _CALL.fullmatch(text)
    if found is None or found[1] not in names:
        return text
    return f"{found[1]}({', '.join(_quoted(part, names) for part in arguments(found[2]))})"


def _quoted(argument: str, names: Container[str]) -> str:
    keyword = _NAMED.fullmatch(argument)
    before, value = (keyword[1], keyword[2]) if keyword else ("", argument)
    value = value.strip()
    return argument if not value or _means_something(value, names) else f"{before}{value!r}"


def _means_something(value: str, names: Container[str]) -> bool:
    try:
        tree = ast.parse(value, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return value[:1] in "'\"([{"  # a mistake, and no path
    called = tree.func if isinstance(tree, ast.Call) else tree
    if isinstance(called, ast.Name):
        return called.id in names or isinstance(tree, ast.Call)
    return isinstance(tree, _PLAIN)


def arguments(text: str) -> Iterator[str]:
    """What stands between commas that are in no brackets and in no quotes: "flip, shift(2)" are two."""
    part, depth, quote = "", 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            yield part
            part = ""
        else:
            part += letter
    if part.strip():
        yield part
