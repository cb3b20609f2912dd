"""What a run of objects says of itself: its options, and its objective in words."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from xhat.config.changes import flat
from xhat.config.options import Options, is_among
from xhat.config.parsing import options_of
from xhat.data.shape import DataShape
from xhat.errors import ConfigError, DamagedError, RunError
from xhat.files.values import of_type, read_values, write_values
from xhat.runs.places import OBJECTS


@dataclass(frozen=True)
class _Stored:
    options: dict[str, Any]
    objective: dict[str, str]
    data: str = ""


@dataclass(frozen=True)
class Objects:
    """What was trained.

    Attributes:
        options: how.
        objective: its parts in words before it was trained, see `Objective.described`.
    """

    options: Options
    objective: dict[str, str]

    def values(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {"options": asdict(self.options), "objective": self.objective}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """What `values` took apart.

        Raises:
            DamagedError or ConfigError: it did not.
        """
        stored = of_type(values, _Stored)
        return cls(options_of(stored.options), stored.objective)


def write_objects(run: Path, found: Objects, shape: DataShape) -> None:
    """Write what is trained."""
    write_values(run / OBJECTS, {**found.values(), "data": shape.said()})


def read_objects(run: Path) -> Objects | None:
    """What was trained; None if the folder holds no run of objects.

    Raises:
        RunError: the file is damaged.
        OSError: it cannot be read.
    """
    path = run / OBJECTS
    try:
        return Objects.of(read_values(path, dict[str, Any]))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise RunError(f"{path} is of another version, or was edited ({error}): choose another folder") from None
    except DamagedError as error:
        raise RunError(f"{path} is damaged ({error}): remove it, and the checkpoint says what was trained") from None


def differences_of(before: Objects, now: Objects, ignored: Sequence[str]) -> list[str]:
    """Lines "key: value there, value here" for what differs between a run and what is to go on with it."""
    there, here = (json.loads(json.dumps({**flat(asdict(o.options)), **o.objective})) for o in (before, now))
    keys = [key for key in {**there, **here} if not is_among(key, ignored)]
    return [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys if there.get(key) != here.get(key)]
