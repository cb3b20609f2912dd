"""A study out of the YAML that a person wrote; whether its configs can be trained is seen in `check`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from xhat.config.yaml_files import read_yaml
from xhat.errors import DamagedError, UsageError
from xhat.files.values import of_type
from xhat.studies.study import Study

TEXTS = ("base", "title", "features")
KINDS: dict[str, type] = {"common": dict, "penalties": dict, "seeds": list, "samples": int} | dict.fromkeys(TEXTS, str)
LONGEST_NAME = 200
"""Letters of a folder's name, which most file systems take."""


def read_study(path: Path) -> Study:
    """A study from YAML.

    Raises:
        UsageError or YamlError: names what is wrong, and in which change.
    """
    if not path.is_file():
        raise UsageError(f"study {path} does not exist")
    values = _known(read_yaml(path), path)
    if "penalties" in values:
        values["penalties"] = {str(name): str(text) for name, text in values["penalties"].items()}
    try:
        study: Study = of_type({"title": path.stem, **values, "changes": _changes(values["changes"], path)}, Study)
    except DamagedError as error:
        raise UsageError(f"{path}: {error}") from None
    for message in (_of_numbers(study), _of_seeds(study), _of_names(study)):
        if message:
            raise UsageError(f"{path}: {message}")
    return study


def _known(values: Any, path: Path) -> dict[str, Any]:
    """The values, of known keys and of the right kinds."""
    known = sorted(f.name for f in fields(Study))
    if not isinstance(values, dict) or not isinstance(values.get("changes"), dict) or not values["changes"]:
        raise UsageError(f"{path} names no changes: write changes: {{name: {{dotted key: value}}}}")
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"{path}: unknown key {unknown[0]}; known: {', '.join(known)}")
    for key, kind in KINDS.items():
        if key in values and not isinstance(values[key], kind):
            raise UsageError(f"{path}: {key} must be a {kind.__name__}, got {values[key]!r}")
    return dict(values)


def _changes(values: dict[Any, Any], path: Path) -> dict[str, dict[str, Any]]:
    changes = {str(name): {} if own is None else own for name, own in values.items()}
    for change, own in changes.items():
        if not isinstance(own, dict):
            raise UsageError(f'{path}: change "{change}" must be {{dotted key: value}}, got {own!r}')
    return changes


def _of_numbers(study: Study) -> str | None:
    if not study.seeds or not all(isinstance(s, int) for s in study.seeds) or study.samples < 2:
        return "seeds must be whole numbers, samples at least 2"
    if len(set(study.seeds)) < len(study.seeds):
        return "a seed is named twice, and would give the same run twice"
    return None


def _of_seeds(study: Study) -> str | None:
    wrong = next((change for change, own in study.changes.items() if "seed" in {**study.common, **own}), None)
    return None if wrong is None else f'change "{wrong}": seed is no value of a change: the study sets it'


def _of_names(study: Study) -> str | None:
    """A change's name becomes the name of a folder."""
    folders = [study.folder(Path(), change, 0).parent.name for change in study.changes]
    if len(set(folders)) < len(folders):
        return "two changes have the same name but for signs; their runs need two folders"
    for change, folder in zip(study.changes, folders, strict=True):
        if len(folder) > LONGEST_NAME:
            return f"a change's name is its folder's: {LONGEST_NAME} letters at most, got {change[:20]}..."
    return None
