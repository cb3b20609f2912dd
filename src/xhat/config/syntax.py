"""Expressions as Python's own parser reads them, of a length and a depth that it can be trusted with."""

import ast

from xhat.errors import ConfigError

LONGEST, DEEPEST = 20_000, 60
"""Letters, and expressions within each other; a diffusers config in an expression has some thousands of letters."""


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of an expression.

    Raises:
        ConfigError: it is none, or too long or too deep to be one that somebody means.
    """
    if len(text) > LONGEST:
        raise ConfigError(f'"{text[:40]}..." is longer than {LONGEST:,} letters, which no expression needs')
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        too_deep = _deeper(tree, DEEPEST)
    except (RecursionError, MemoryError):
        too_deep = True
    except (SyntaxError, ValueError):
        raise ConfigError(f'cannot read "{text[:200]}": write a name or a call such as min_snr(5)') from None
    if too_deep:
        raise ConfigError(f'"{text[:40]}..." is nested more than {DEEPEST} deep, which no expression needs')
    return tree


def names_in(text: str) -> set[str]:
    """The names in an expression.

    Raises:
        ConfigError: as for `parse_expression`.
    """
    return {node.id for node in ast.walk(parse_expression(text)) if isinstance(node, ast.Name)}


def _deeper(tree: ast.AST, most: int) -> bool:
    """Whether a tree has more levels than that; level by level, so that no depth is too much for the question."""
    level: list[ast.AST] = [tree]
    for _ in range(2 * most):  # an argument of a call by name is two levels down
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True
