"""What a run of objects says of itself: its options, and its objective in words."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from xhat.config.changes import flat
from xhat.config.options import Options
from xhat.config.parsing import options_of
from xhat.data.shape import DataShape
from xhat.errors import RunError
from xhat.files import write_bytes

OBJECTS = "objects.json"


@dataclass(frozen=True)
class Objects:
    """What was trained.

    Attributes:
        options: how.
        objective: its parts in words before it was trained, see `Objective.described`.
    """

    options: Options
    objective: dict[str, str]


def write_objects(run: Path, found: Objects, shape: DataShape) -> None:
    """Write what is trained."""
    values = {"options": asdict(found.options), "objective": found.objective, "data": shape.said()}
    write_bytes(run / OBJECTS, json.dumps(values, indent=1).encode())


def read_objects(run: Path) -> Objects | None:
    """What was trained; None if the folder holds no run of objects.

    Raises:
        RunError: the file is damaged.
    """
    path = run / OBJECTS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Objects(options_of(values["options"]), dict(values["objective"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): choose another folder") from None


def differences_of(before: Objects, now: Objects, ignored: Sequence[str]) -> list[str]:
    """Lines "key: value there, value here" for what differs between a run and what is to go on with it."""
    there, here = (json.loads(json.dumps({**flat(asdict(o.options)), **o.objective})) for o in (before, now))
    keys = [key for key in {**there, **here} if key.split(".")[0] not in ignored]
    return [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys if there.get(key) != here.get(key)]
