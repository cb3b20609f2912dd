"""The house: a room uses only the rooms below it, no command another, and no file is long."""

import ast
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from xhat.cli import COMMANDS

SOURCE = Path(__file__).parents[1] / "src" / "xhat"
FLOORS = (
    ("errors",),
    ("rng", "registry", "tensors", "files", "distributed", "budgets"),
    ("diffusion", "networks", "data"),
    ("objective", "bound", "sampling", "sources"),
    ("losses",),
    ("analysis",),
    ("evaluation", "pipelines"),
    ("config", "exports"),
    ("runs",),
    ("training", "studies"),
    ("report",),
    ("commands", "cli", "__main__"),
)
"""From the lowest; xhat/__init__.py stands above all, but for its version."""
MOST_ROOMS, MOST_LINES = 28, 320

KNOWN: set[str] = set()
"""What is not mended yet: "module -> module" for an import, or the name of a module that is too long."""


def name_of(path: Path) -> str:
    """xhat/data/load.py -> data.load, xhat/data/__init__.py -> data, xhat/__init__.py -> "" """
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    """Counted from 0; the package itself is above all of its rooms."""
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), len(FLOORS))


def imported_by(module: str, tree: ast.AST) -> set[str]:
    """The modules of the house that the imports anywhere in a module name: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} - {"xhat.__version__"}
    return {longest(name) for name in found if name.split(".")[0] == "xhat"} - {module}


def longest(name: str) -> str:
    """The module that a dotted name leads to, whatever of it is a name within the module."""
    parts = name.split(".")[1:]
    return next(m for n in range(len(parts), -1, -1) if (m := ".".join(parts[:n])) in MODULES)


@cache
def imports() -> dict[str, set[str]]:
    return {name: imported_by(name, ast.parse(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}


def circles(graph: dict[str, set[str]]) -> set[str]:
    """All that can be reached from itself."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    return {name for name in graph if name in reached(name)}


def without_known() -> dict[str, set[str]]:
    return {m: {u for u in used if f"{m} -> {u}" not in KNOWN} for m, used in imports().items()}


def of_rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, used in graph.items():
        rooms.setdefault(room(module), set()).update(room(u) for u in used if room(u) != room(module))
    return rooms


def upward() -> set[str]:
    return {f"{m} -> {u}" for m, used in imports().items() for u in used if floor(u) > floor(m)}


def long() -> set[str]:
    return {name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES}


def commands() -> set[str]:
    """The modules that the command line calls, of each command two: one for its arguments, one for what it does."""
    return {f"commands.{inner}{name}" for name in COMMANDS for inner in ("", "actions.")}


def test_every_room_has_its_floor_and_there_are_not_too_many():
    entries = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert entries - {"__init__"} == {name for rooms in FLOORS for name in rooms}
    assert len(entries) <= MOST_ROOMS


def test_nothing_points_up():
    assert upward() - KNOWN == set()


def test_rooms_and_modules_form_no_circle():
    assert circles(without_known()) == set()
    assert circles(of_rooms(without_known())) == set()


def test_no_command_imports_another():
    own = {(f"commands.actions.{name}", f"commands.{name}") for name in COMMANDS}
    assert {(m, u) for m in commands() for u in imports()[m] & commands()} - own == set()


def test_no_file_is_long():
    assert long() - KNOWN == set()


def test_what_is_known_is_still_so():
    """The list only shrinks: what has been mended leaves it."""
    assert upward() | long() >= KNOWN


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import xhat.rng", {"rng"}),
        ("from xhat.data.load import load", {"data.load"}),
        ("from xhat.data import load", {"data.load"}),
        ("from xhat import Objective", {""}),
        ("from xhat import __version__", set()),
        ("def f():\n    from xhat.errors import DataError", {"errors"}),
        ("if TYPE_CHECKING:\n    from xhat.files import sweep", {"files"}),
        ("import torch\nfrom math import inf", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found):
    assert imported_by("x", ast.parse(source)) == found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == {"a", "b", "c"}
    assert all(floor(a[0]) < floor(b[0]) for a, b in combinations(FLOORS, 2))
    assert floor("") > floor("cli")


HEAVY = (
    "scipy",
    "matplotlib",
    "torch._dynamo",
    "jsonargparse",
    "rich",
    "accelerate",
    "torchmetrics",
    "torchdiffeq",
    "plotly",
    "PIL",
)


def test_importing_the_package_imports_nothing_heavy():
    """What few need is imported where it is asked for."""
    code = f"import sys, xhat; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent)
    assert done.stdout.strip() == "[]"


def test_no_name_of_the_package_imports_what_only_some_commands_need():
    late = ("torch._dynamo", "scipy", "matplotlib", "plotly", "diffusers", "transformers", "datasets", "peft", "torchmetrics")
    code = (
        "import sys, xhat\n"
        "for name in (*xhat.__all__, *xhat.FAMILIES): getattr(xhat, name)\n"
        f"print([m for m in {late} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 0),
        ("--help", 0),
        ("trian", 2),
        *((f"{name} --help", 0) for name in COMMANDS),
        *((f"{name} a --nosuch 1", 2) for name in COMMANDS),
        ("train mnits --run nosuch", 2),
        ("train --run nosuch --optimizer.lr -3", 2),
        ("train --run nosuch --seed x", 2),
        ("train --run .", 2),
        ("inspect mnits", 2),
        ("gradients mnits", 2),
        ("sample nosuch --out a.npz", 2),
        ("evaluate nosuch", 2),
        ("export nosuch --to onnx a.onnx", 2),
        ("compare nosuch.yaml --out a", 2),
        ("report nosuch", 2),
    ],
)
def test_arguments_are_read_without_torch(arguments, code, tmp_path):
    """It takes a second or more to import: whoever has misspelt a word, or wants help, need not wait for it."""
    (tmp_path / "config.yaml").write_text("target: v\n")  # as of a run
    found = (
        "import sys\n"
        "from xhat.cli import main\n"
        "try:\n"
        f"    code = main({arguments.split()})\n"
        "except SystemExit as ended:\n"
        "    code = ended.code or 0\n"
        "print(code, [m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"{code} []", done.stderr


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_a_network_is_made_without_the_compiler(network):
    """Its weights are counted on "meta" first, where arithmetic on tensors would load it: seconds, for each command."""
    code = (
        "import sys\n"
        "from xhat.config.build import build_denoiser\n"
        "from xhat.config.config import Config\n"
        "from xhat.data.shape import DataShape\n"
        f"build_denoiser(Config(network={network!r}), DataShape(1, 28, 10))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
