"""Files of a user's own parts: named on the command line, run once, and remembered with their checksum."""

import ast
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import xhat.config.names  # noqa: F401  # xhat's own parts are registered before anybody else's
from xhat.errors import UsageError, with_kind
from xhat.files.atomic import read_bytes
from xhat.registry import FAMILIES


@dataclass(frozen=True)
class UsedFile:
    """A file that was named with --use.

    Attributes:
        path: of the file.
        source: its bytes when it was run.
        parts: (kind, name) of what it has registered, under each of its names.
        beside: bytes of the files that it imports from its own folder, by their path from there.
    """

    path: Path
    source: bytes
    parts: frozenset[tuple[str, str]]
    beside: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Without the folder."""
        return self.path.name

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.source).hexdigest()


_USED: dict[Path, UsedFile] = {}


def used_files() -> list[UsedFile]:
    """The files of this process, in the order in which they were named."""
    return list(_USED.values())


def use(paths: Iterable[str]) -> None:
    """Run files of parts; what they register is a name in every expression from then on. A file runs once.

    Raises:
        UsageError: it does not exist, fails, or registers nothing; one line that names the file and the place in it.
    """
    for path in map(Path, paths):
        whole = path.resolve()
        if whole not in _USED:
            _USED[whole] = _run(path)


def _run(path: Path) -> UsedFile:
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"--use {path}: {'is no .py file' if path.exists() else 'the file does not exist'}")
    name, before = f"xhat_use_{path.stem}", [family.names() for family in FAMILIES]
    if name in sys.modules:
        raise UsageError(f"--use {path}: another file of this name is in use: rename one of them")
    source, known = read_bytes(path), set(sys.modules)
    try:
        _execute(path, name)
        parts = frozenset(_registered() - _names(before))
        if not parts:
            raise UsageError("the file registers nothing: put @xhat.register before each class or function of it")
    except BaseException as error:
        for new in {name, path.stem} & (set(sys.modules) - known):
            del sys.modules[new]
        for family, names in zip(FAMILIES, before, strict=True):
            family.restore(names)
        if isinstance(error, KeyboardInterrupt):
            raise
        said = str(error) if isinstance(error, UsageError) else _said(error, path)
        raise UsageError(f"--use {path}: {said}") from error
    return UsedFile(path, source, parts, _beside(path))


def _execute(path: Path, name: str) -> None:
    """Run a file as a module of this name; what it prints goes to stderr, where it spoils no result."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # for what lies beside it; last, so that it hides nothing
    importlib.invalidate_caches()
    found = importlib.util.find_spec(path.stem) if path.stem.isidentifier() and path.stem not in sys.modules else None
    if found is not None and found.origin is not None and Path(found.origin).resolve() == path.resolve():
        sys.modules[path.stem] = module  # another used file may import this one, which must not run twice
    with contextlib.redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)


def _registered() -> set[tuple[str, str]]:
    """(kind, name) of all parts, under each of their names."""
    return _names([family.names() for family in FAMILIES])


def _names(of: list[tuple[dict[str, object], dict[str, str]]]) -> set[tuple[str, str]]:
    return {(f.kind, name) for f, (low, python) in zip(FAMILIES, of, strict=True) for name in (*low, *python)}


def _beside(path: Path) -> dict[str, bytes]:
    """The files in the file's folder that it imports, and those that these import; none of installed packages."""
    folder, found, todo = path.resolve().parent, dict[str, bytes](), [path.resolve()]
    while todo:
        for name in _imported(todo.pop().read_bytes()):
            module = sys.modules.get(name)
            file = Path(getattr(module, "__file__", None) or "/").resolve()
            inside = file.suffix == ".py" and file.is_relative_to(folder) and not _installed(file, name)
            if inside and (place := file.relative_to(folder).as_posix()) not in found and file != path.resolve():
                found[place] = file.read_bytes()
                todo.append(file)
    return found


def _imported(source: bytes) -> set[str]:
    """The modules that the imports of a file name, and the packages that they are in."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:n]) for name in names for parts in [name.split(".")] for n in range(1, len(parts) + 1)}


def _installed(file: Path, module: str) -> bool:
    return module.split(".")[0] == "xhat" or file.is_relative_to(sys.prefix) or "site-packages" in file.parts


def place_of(error: BaseException) -> str | None:
    """The last line of a used file, or of one that it imports, that an error came by: my_parts.py, line 12."""
    own = {*_USED, *(whole.parent / name for whole, file in _USED.items() for name in file.beside)}
    place, trace = None, error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.suffix == ".py" and (whole := file.resolve()) in own:
            place = f"{whole.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _said(error: BaseException, path: Path) -> str:
    """line 12: NameError: ..., the line being one of the user's file."""
    line = error.lineno if isinstance(error, SyntaxError) else _line(error.__traceback__, path)
    what = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else with_kind(error)
    return f"line {line}: {what}" if line else what


def _line(trace: TracebackType | None, path: Path) -> int | None:
    line = None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
