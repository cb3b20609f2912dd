"""Every public name is in the reference: those of `xhat.__all__`, and those of each namespace, constants and aliases too."""

import ast
import importlib
import re
import zlib
from functools import cache
from pathlib import Path

import pytest

import xhat

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PUBLIC_NAMESPACES = re.findall(r"`(\w+)`", xhat.__doc__.partition("namespaces:")[2])


def file_of(module):
    """The source of a module or package."""
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree(module):
    return ast.parse(file_of(module).read_text()).body


@cache
def defined(module):
    """Names that a module defines at its top: functions, classes, constants and aliases."""
    names = set()
    for node in tree(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return frozenset(name for name in names if not name.startswith("_"))


@cache
def home(module, name):
    """module.name where it is defined, followed through imports."""
    if name in defined(module):
        return f"{module}.{name}"
    for node in [n for top in tree(module) for n in (top.body if isinstance(top, ast.If) else [top])]:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("xhat"):
            for alias in node.names:
                if alias.name == "*" and name in exported(node.module):
                    return home(node.module, name)
                if (alias.asname or alias.name) == name:
                    return home(node.module, alias.name)
    raise LookupError(f"{module} has no {name}")


def exported(module):
    """What a namespace offers: its __all__, or all that it defines itself."""
    return getattr(importlib.import_module(module), "__all__", None) or sorted(defined(module))


def public():
    """{name as a user writes it: where it is defined}."""
    names = {f"xhat.{name}": home("xhat", name) for name in xhat.__all__}
    for namespace in PUBLIC_NAMESPACES:
        module = getattr(xhat, namespace).__name__
        names |= {f"xhat.{namespace}.{name}": home(module, name) for name in exported(module)}
    return names


def documented():
    """The modules that a page of the reference documents."""
    return {
        name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (xhat[\w.]*)$", page.read_text(), re.MULTILINE)
    }


def test_the_names_are_found_where_they_are_defined():
    names = public()
    assert len(PUBLIC_NAMESPACES) == 20
    assert names["xhat.V"] == "xhat.diffusion.targets.V"
    assert names["xhat.weightings.min_snr"] == "xhat.diffusion.weightings.published.min_snr"
    assert names["xhat.variances.FIXED_LARGE"] == "xhat.diffusion.variances.FIXED_LARGE"
    with pytest.raises(LookupError):
        home("xhat", "no_such_name")


def test_every_module_with_a_public_name_is_documented():
    missing = {name: place for name, place in public().items() if place.rpartition(".")[0] not in documented()}
    assert not missing


def test_every_page_of_the_reference_names_modules_that_exist():
    for module in documented():
        assert file_of(module).exists(), module


def test_the_list_of_all_names_is_whole():
    """docs/reference/index.md: the names of `xhat` with their places, and the namespaces."""
    page = (REFERENCE / "index.md").read_text()
    linked = dict(re.findall(r"\[`(\w+)`\]\[(xhat[\w.]+)\]", page))
    assert linked == {name: home("xhat", name) for name in xhat.__all__}
    assert all(f"`xhat.{namespace}`" in page for namespace in PUBLIC_NAMESPACES)


@pytest.mark.slow
def test_every_name_is_in_the_inventory_of_the_built_site(tmp_path):
    """objects.inv, which other projects' documentation links by: four lines of header, then compressed lines."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), hooks=[])  # KaTeX is of no matter here
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    header, _, packed = (tmp_path / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2")
    inventory = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    assert not {name: place for name, place in public().items() if place not in inventory}
