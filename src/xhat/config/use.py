"""Files of a user's own parts: named on the command line, run once, and remembered with their checksum."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from xhat.config.changes import flat
from xhat.config.config import Config
from xhat.errors import UsageError
from xhat.registry import FAMILIES


@dataclass(frozen=True)
class UsedFile:
    """A file that was named with --use.

    Attributes:
        path: of the file.
        source: its bytes when it was run.
        parts: names that it has registered, and what they are.
    """

    path: Path
    source: bytes
    parts: dict[str, str]

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
    source = path.read_bytes()
    try:
        _execute(path, name)
        added = [(set(family), set(known[0])) for family, known in zip(FAMILIES, before, strict=True)]
        parts = {part: f.kind for f, (now, then) in zip(FAMILIES, added, strict=True) for part in f if part in now - then}
        if not parts:
            raise UsageError("the file registers nothing: put @xhat.register before each class or function of it")
    except BaseException as error:
        sys.modules.pop(name, None)
        for family, known in zip(FAMILIES, before, strict=True):
            family.restore(known)
        if isinstance(error, KeyboardInterrupt):
            raise
        said = str(error) if isinstance(error, UsageError) else f"{_place(error, path)}{_said(error)}"
        raise UsageError(f"--use {path}: {said}") from error
    return UsedFile(path, source, parts)


def _execute(path: Path, name: str) -> None:
    """Run a file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    sys.path.append(str(path.resolve().parent))  # for what lies beside it; last, so that it hides nothing
    spec.loader.exec_module(module)


def _place(error: BaseException, path: Path) -> str:
    """line 12: , of the user's file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _said(error: BaseException) -> str:
    lines = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind


def origin(text: str) -> str:
    """The names of the used files whose parts an expression names; empty if there are none."""
    named = _names(text)
    return ", ".join(file.name for file in used_files() if named & file.parts.keys())


def _names(text: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return set()


def described(config: Config) -> dict[str, str]:
    """How messages call the network and the terms of a config: their expressions, and the file that a part came from."""
    texts = {"network": config.network, **{name: term.loss for name, term in config.terms.items()}}
    return {name: f"{text} of {file}" if (file := origin(text)) else text for name, text in texts.items()}


def needed_by(config: Config) -> list[UsedFile]:
    """The files of this process whose parts a config names."""
    texts = (value for value in flat(asdict(config)).values() if isinstance(value, str))
    named = set[str]().union(*map(_names, texts))
    return [file for file in used_files() if named & file.parts.keys()]
