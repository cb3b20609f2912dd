"""Configs of runs that earlier versions wrote, in today's words. What people write is not touched: there today's names hold."""

import ast
from collections.abc import Mapping
from typing import Any

from xhat.config.syntax import parse_expression
from xhat.errors import ConfigError

PARAMETERS = {
    "denoising": ("space", "weighting", "norm"),
    "increment": ("weighting",),
    "image_loss": ("penalty", "image", "weighting", "decode", "expect"),
}
PLACES = {name: parameters.index("weighting") for name, parameters in PARAMETERS.items()}
CHAINS = ("full_chain", "rollout")


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's config, its losses written as they are today.

    `weight` of a loss became `weighting`, `moved` became `convert_weighting`, a number of differentiated steps became
    last(number) or all_steps, and a learned uncertainty, once a weight, is put around its loss.
    """
    terms = values.get("terms")
    if not isinstance(terms, Mapping):
        return dict(values)
    return {**values, "terms": {name: _term(term) for name, term in terms.items()}}


def _term(term: Any) -> Any:
    if not isinstance(term, Mapping) or not isinstance(term.get("loss"), str):
        return term
    try:
        tree = parse_expression(term["loss"])
    except ConfigError:
        return term  # whoever builds it says what is wrong
    before = ast.dump(tree)
    tree = _Upgrade().visit(tree)
    return term if ast.dump(tree) == before else {**term, "loss": ast.unparse(tree)}


class _Upgrade(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "moved":
            node.func = ast.Name("convert_weighting")
            for keyword in node.keywords:
                keyword.arg = "weighting" if keyword.arg == "weight" else keyword.arg
        if name in CHAINS:
            node.args[2:3] = map(_differentiate, node.args[2:3])
            for keyword in node.keywords:
                if keyword.arg == "grad_steps":
                    keyword.arg, keyword.value = "differentiate", _differentiate(keyword.value)
        return _around(node) if name in PARAMETERS else node


def _differentiate(node: ast.expr) -> ast.expr:
    """last(2) for 2, all_steps for None."""
    if not isinstance(node, ast.Constant):
        return node
    return ast.Name("all_steps") if node.value is None else ast.Call(ast.Name("last"), [node], [])


def _is_learned(node: ast.expr) -> bool:
    """Whether it is learned_uncertainty, called or not."""
    return getattr(node.func if isinstance(node, ast.Call) else node, "id", "") == "learned_uncertainty"


def _around(loss: ast.Call) -> ast.Call:
    """The loss with its weighting under today's name; a learned uncertainty is taken out, and put around it."""
    place = PLACES[getattr(loss.func, "id", "")]
    if len(loss.args) > place and _is_learned(loss.args[place]):  # of several arguments: the rest by name
        names = PARAMETERS[getattr(loss.func, "id", "")]
        loss.keywords += [ast.keyword(n, v) for n, v in zip(names[place:], loss.args[place:], strict=False)]
        loss.args = loss.args[:place]
    for keyword in loss.keywords:
        keyword.arg = "weighting" if keyword.arg == "weight" else keyword.arg
    own = next((k for k in loss.keywords if k.arg == "weighting"), None)
    if own is None or not _is_learned(own.value):
        return loss
    learned = own.value if isinstance(own.value, ast.Call) else ast.Call(own.value, [], [])
    given = dict(zip(("base", "outer", "features"), learned.args, strict=False)) | {
        str(k.arg): k.value for k in learned.keywords
    }
    base = given.pop("base", None)
    loss.keywords.remove(own)
    if base is not None and not (isinstance(base, ast.Constant) and base.value is None):
        loss.keywords.append(ast.keyword("weighting", base))
    outer = [ast.keyword(key, value) for key, value in given.items() if getattr(value, "value", key) is not None]
    return ast.Call(ast.Name("learned_uncertainty"), [loss], outer)
