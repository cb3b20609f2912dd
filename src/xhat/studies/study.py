"""A study: one base config, a list of changes, several seeds; the same weights, data order and noise for all."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xhat.config.config import Config
from xhat.errors import DamagedError, RunError
from xhat.files.values import read_values, write_values
from xhat.runs.recipe import config_with

STUDY_FILE, FINISHED = "study.json", "finished.json"


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        changes: name -> config values by dotted name, added to the common ones.
        title: of the report.
        base: a preset or .yaml file; with `init` in the common values it may be left out.
        common: config values of all runs.
        seeds: every change runs with each; a seed fixes initial weights, data order, times and noise.
        samples: drawn from each run, as its config says.
        penalties: name -> expression, measured on the samples and on real images.
        features: a registered network that distances of samples are measured in, the same weights whenever it is made; by
            default the shipped one, of grey digits.
    """

    changes: dict[str, dict[str, Any]]
    title: str = ""
    base: str | None = None
    common: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    samples: int = 1000
    penalties: dict[str, str] = field(default_factory=lambda: {"total_variation": "total_variation"})
    features: str | None = None

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Change and seed of each run."""
        return [(change, seed) for change in self.changes for seed in self.seeds]

    def config(self, change: str, seed: int) -> Config:
        """The config of one run.

        Raises:
            UsageError, RunError, YamlError or ConfigError: the base does not exist, or a value does not fit.
        """
        return config_with(self.base, {**self.common, **self.changes[change], "seed": seed})

    def folder(self, out: Path, change: str, seed: int) -> Path:
        """Where a run goes."""
        return out / (re.sub(r"[^a-z0-9]+", "-", change.lower()).strip("-") or "change") / f"seed-{seed}"


def study_to_file(path: Path, study: Study, failed: Mapping[str, Mapping[int, str]]) -> None:
    """Write what is compared, and what failed, for a report."""
    write_values(path, {"study": asdict(study), "failed": failed})


def study_from_file(path: Path) -> tuple[Study, dict[str, dict[int, str]]]:
    """What `study_to_file` wrote.

    Raises:
        RunError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        stored: _Stored = read_values(path, _Stored)
        if not stored.study.changes:
            raise DamagedError("it names no changes")
        return stored.study, stored.failed
    except DamagedError as error:
        again = "call xhat compare again, which writes it anew and trains nothing twice"
        raise RunError(f"{path} is damaged ({error}): {again}") from None


@dataclass(frozen=True)
class _Stored:
    study: Study
    failed: dict[str, dict[int, str]]
