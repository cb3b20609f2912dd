"""The contents of a report on run folders: each is one entry."""

from collections.abc import Sequence
from pathlib import Path

from xhat.config.build import build_penalty
from xhat.config.config import Config
from xhat.errors import UsageError
from xhat.pipelines.network import folder_of
from xhat.report.collect import QUANTITIES, Group, collect, subtitle
from xhat.report.comparable import common_levels, require_comparable, standing_penalties
from xhat.report.contents import SECONDS, Contents
from xhat.report.measured import How, measured
from xhat.runs.metrics import read_metrics
from xhat.runs.places import CONFIG_FILE, OBJECTS, WEIGHTS
from xhat.runs.recipe import read_run_config
from xhat.runs.used import require_used, used_by
from xhat.runs.weights import read_weights
from xhat.studies.outcome import Outcome
from xhat.studies.study import STUDY_FILE


def runs_contents(folders: Sequence[Path], samples: int, watch: bool = False) -> tuple[Contents, bool]:
    """The contents of a page on runs, and whether all of them have ended.

    Args:
        folders: of the runs.
        samples: drawn from each.
        watch: leave out what is still training, rather than measure it as it stands.

    Raises:
        UsageError: a folder holds no run, or the runs cannot be compared.
    """
    names = _names(folders)
    configs = {folder: _config(folder) for folder in folders}
    require_comparable({name: configs[folder] for name, folder in zip(names, folders, strict=True)})
    done = [folder for folder in folders if not watch or _finished(folder)]
    how = How(samples=samples, penalties=_penalties(list(configs.values()), done), logsnr=common_levels(done))
    groups = []
    for name, folder in zip(names, folders, strict=True):
        found = [measured(folder, how)] if folder in done else []
        values = {quantity: [value] for m in found for quantity, value in m.numbers.items()}
        groups.append(Group(name, [folder], found, configs[folder], Outcome(name, values, {})))
    title = "xhat report" if len(names) > 1 else f"xhat report: {names[0]}"
    ended = len(done) == len(folders)
    refresh = None if ended else SECONDS
    return collect(title, subtitle(groups, how), groups, list(how.penalties), refresh=refresh), ended


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole where those are the same."""
    if len({f.resolve() for f in folders}) < len(folders):
        raise UsageError("a run is named twice")
    short = [f.resolve().name for f in folders]
    return short if len(set(short)) == len(short) else [str(f) for f in folders]


def _config(folder: Path) -> Config:
    if not (folder / CONFIG_FILE).is_file():
        if (folder / OBJECTS).is_file():
            raise UsageError(f"{folder} holds a run of xhat.fit, whose objects no config names: measure it with xhat.validate")
        what = "a study beside other runs" if (folder / STUDY_FILE).exists() else "no run"
        raise UsageError(f"{folder} holds {what}: name folders of xhat train, or one of xhat compare")
    require_used(used_by(folder), folder)
    return read_run_config(folder)


def _finished(folder: Path) -> bool:
    """Whether training has ended, and its last weights are written: the last line of the metrics is written before them."""
    rows = read_metrics(folder)
    if not rows or float(rows[-1].get("progress", 1.0)) < 1 or not (folder / WEIGHTS).exists():
        return False
    return read_weights(folder).step >= int(rows[-1]["step"])


def _penalties(configs: Sequence[Config], done: Sequence[Path]) -> dict[str, str]:
    """Total variation of pictures, and every penalty of images alone that one of the runs was trained with or watched by."""
    found = dict(standing_penalties(configs[0], [read_weights(folder).shape for folder in done]))
    for config in configs:
        for name, text in {**{name: term.loss for name, term in config.terms.items()}, **config.watch}.items():
            try:
                build_penalty(text, decoded=folder_of(config.network) is not None)
            except ValueError:
                continue
            if text not in found.values():
                found[name if name not in (*found, *QUANTITIES) else f"{name}: {text}"] = text
    return found
