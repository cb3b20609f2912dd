"""The promises of SECURITY.md: what xhat's source never does, and where alone it runs code that somebody named."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "xhat"
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
IMPORTS = {
    "cli.py": "a command of xhat's own, looked up in its table",
    "__init__.py": "a name of xhat's own that is imported late",
    "config/names.py": "xhat's own rooms",
    "config/use.py": "the file of --use",
    "pipelines/families/__init__.py": "xhat's own families of models",
}
"""Files that import what a string names."""


def broken(text, name):
    """The promises that a file's source breaks."""
    for node in ast.walk(ast.parse(text)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        if any(module.partition(".")[0] in PICKLES for module in modules):
            yield "imports a reader of pickles"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "__import__") or called.endswith(("torch.load", "hub.load", "jit.load")):
            yield f"calls {called}"
        if called == "np.load" and keywords.get("allow_pickle") != "False":
            yield "reads arrays of objects"
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and ast.unparse(node) != "yaml.load(text, _Loader)":
            yield "reads YAML that makes objects"
        if called.endswith(("import_module", "exec_module")) and name not in IMPORTS:
            yield "imports what a string names"


def test_the_source_keeps_the_promises():
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        assert list(broken(path.read_text(encoding="utf-8"), name)) == [], name


def test_yaml_is_read_as_plain_values():
    import yaml

    from xhat.config import yaml_files

    assert issubclass(yaml_files._Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "importlib.import_module(name)",
    ],
)
def test_a_broken_promise_is_seen(text):
    assert len(list(broken(text, "data/new.py"))) == 1
