"""xhat report."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from xhat.commands.parsing import new_parser, read_config
from xhat.commands.terminal import note
from xhat.commands.train import CONFIG_FILE
from xhat.config.build import build_penalty
from xhat.config.config import Config
from xhat.errors import UsageError
from xhat.evaluation.denoising import LEVELS, reached
from xhat.files import write_bytes
from xhat.report.collect import QUANTITIES, Group, collect
from xhat.report.contents import Contents
from xhat.report.measured import How, measured, metrics
from xhat.runs.weights import WEIGHTS, read_weights
from xhat.studies.outcome import Outcome
from xhat.studies.study import FINISHED, STUDY_FILE, Study, study_from_file

DESCRIPTION = """Write one HTML page about runs, which needs no network to be read: samples from the same noise, how they came
about, the error at each noise level with the floor that no denoiser can go below, what is learned, the bound step by step,
penalties against quality, what differs between the configs.

RUN is a run folder, or the folder of a study (xhat compare --out). What is measured is kept in the runs' folders. With --watch
the page is written anew every ten seconds until training ends, and an open page shows it; runs are measured as they end."""

SECONDS = 10


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = new_parser("report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or one folder of a study")
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="where the page goes")
    drawn = "drawn from each run for FID and penalties (1000); studies have their own"
    parser.add_argument("--samples", type=int | None, default=None, help=drawn)
    parser.add_argument("--watch", action="store_true", help="write the page anew until the runs have ended")
    options = parser.read(argv)
    out, folders = Path(options.out), [Path(r) for r in options.runs]
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"--out {out} is a folder" if out.is_dir() else f"--out {out}: the folder {out.parent} does not exist")
    samples: int = 1000 if options.samples is None else options.samples
    if samples < 2:
        raise UsageError("--samples must be at least 2")
    if options.samples is not None and _is_study(folders):
        note(f"--samples {samples} has no effect: the study says how many")
    while True:
        contents, ended = _contents(folders, How(samples=samples), options.watch)
        write_page(contents, out)
        if ended or not options.watch:
            break
        time.sleep(SECONDS)
    print(f"report: {out}")
    return 0


def write_page(contents: Contents, out: Path) -> None:
    """Render and write."""
    from xhat.report.page import render

    write_bytes(out, render(contents).encode())


def _is_study(folders: Sequence[Path]) -> bool:
    return len(folders) == 1 and (folders[0] / STUDY_FILE).exists()


def _contents(folders: Sequence[Path], how: How, watch: bool) -> tuple[Contents, bool]:
    """The contents of the page, and whether there is nothing to wait for."""
    if _is_study(folders):
        study, failed = study_from_file(folders[0] / STUDY_FILE)
        return study_contents(study, folders[0], failed, watch)
    names = _names(folders)
    configs = {folder: _config(folder) for folder in folders}
    require_comparable({name: configs[folder] for name, folder in zip(names, folders, strict=True)})
    how = dataclasses.replace(how, penalties=_penalties(list(configs.values())))
    done = {folder: not watch or _finished(folder) for folder in folders}
    levels = common_levels([f for f in folders if done[f]])
    how = dataclasses.replace(how, logsnr=levels)
    groups = []
    for name, folder in zip(names, folders, strict=True):
        found = [measured(folder, how)] if done[folder] else []
        values = {quantity: [value] for m in found for quantity, value in m.numbers.items()}
        groups.append(Group(name, [folder], found, configs[folder], Outcome(name, values, {})))
    title = "xhat report" if len(names) > 1 else f"xhat report: {names[0]}"
    ended = all(done.values())
    return collect(title, _subtitle(groups, how), groups, list(how.penalties), refresh=None if ended else SECONDS), ended


def study_contents(study: Study, out: Path, failed: dict[str, dict[int, str]], watch: bool = False) -> tuple[Contents, bool]:
    """The contents of a study's page: a change over its seeds is one entry.

    Args:
        study: what is compared.
        out: its folder.
        failed: change -> seed -> what went wrong.
        watch: leave out what is still training.
    """
    from xhat.commands.train import resolve

    runs = {(c, s): study.folder(out, c, s) for c in study.changes for s in study.seeds}
    waiting = [key for key, f in runs.items() if not (f / FINISHED).exists() and key[1] not in failed.get(key[0], {})]
    how = study_how(study, [f for f in runs.values() if (f / FINISHED).exists()])
    groups = []
    for change in study.changes:
        problems, found = dict(failed.get(change, {})), {}
        for seed in study.seeds:
            if (runs[change, seed] / FINISHED).exists() and seed not in problems:
                try:
                    found[seed] = measured(runs[change, seed], how)
                except (OSError, RuntimeError, ValueError) as error:
                    problems[seed] = f"not measured: {' '.join(str(error).split())}"
            elif seed not in problems and not watch:
                problems[seed] = "not trained yet"
        folders = [runs[change, s] for s in study.seeds if runs[change, s].exists() and s not in problems]
        config = resolve([*study.options(change, study.seeds[0]), "--run", "shown"])[0]
        outcome = Outcome.of(change, {s: m.numbers for s, m in found.items()}, problems, study.seeds)
        groups.append(Group(change, folders, list(found.values()), config, outcome))
    missing = sum(len(g.outcome.failed) for g in groups)
    notes = [f"{missing} of {len(runs)} runs are missing: the reasons stand below."] if missing else []
    refresh = SECONDS if watch and waiting else None
    subtitle = f"{_subtitle(groups, how)}; seeds {', '.join(map(str, study.seeds))}"
    return collect(
        study.title or "xhat study", subtitle, groups, list(study.penalties), notes=notes, refresh=refresh
    ), not waiting


def study_how(study: Study, folders: Sequence[Path]) -> How:
    """How the runs of a study are measured: all alike, at the noise levels that all of them have."""
    return How(samples=study.samples, penalties=dict(study.penalties), logsnr=common_levels(folders))


def common_levels(folders: Sequence[Path]) -> tuple[float, ...]:
    """The noise levels that the schedules of all runs have; a run that has fewer than two of them does not count."""
    from xhat.runs.weights import load

    levels = list(LEVELS)
    for folder in folders:
        with contextlib.suppress(ValueError):  # said where it is measured, and no reason to measure no other
            levels = reached(load(folder).denoiser.schedule, levels)
    return tuple(levels)


def require_comparable(configs: dict[str, Config]) -> None:
    """Errors of x0 and distances to real images are of the data: other data, other scale.

    Raises:
        UsageError: two configs have other data, or another size of them.
    """
    (first, reference), *others = configs.items()
    for name, config in others:
        for key in ("data", "image_size", "held_out"):
            mine, its = getattr(config, key), getattr(reference, key)
            if mine != its:
                raise UsageError(
                    f"{first} and {name} cannot be compared: {key} is {its} and {mine}, and errors on other images are on "
                    "another scale; write a report for each"
                )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole where those are the same."""
    if len({f.resolve() for f in folders}) < len(folders):
        raise UsageError("a run is named twice")
    short = [f.resolve().name for f in folders]
    return short if len(set(short)) == len(short) else [str(f) for f in folders]


def _config(folder: Path) -> Config:
    if not (folder / CONFIG_FILE).is_file():
        what = "a study beside other runs" if (folder / STUDY_FILE).exists() else "no run"
        raise UsageError(f"{folder} holds {what}: name folders of xhat train, or one of xhat compare")
    return read_config(folder / CONFIG_FILE)


def _finished(folder: Path) -> bool:
    """Whether training has ended, and its last weights are written: the last line of the metrics is written before them."""
    rows = metrics(folder)
    if not rows or float(rows[-1].get("progress", 1.0)) < 1 or not (folder / WEIGHTS).exists():
        return False
    return read_weights(folder).step >= int(rows[-1]["step"])


def _penalties(configs: Sequence[Config]) -> dict[str, str]:
    """Total variation, and every penalty of images alone that one of the runs was trained with."""
    found = {"total_variation": "total_variation"}
    for config in configs:
        for name, term in config.terms.items():
            try:
                build_penalty(term.loss)
            except ValueError:
                continue
            if term.loss not in found.values():
                found[name if name not in (*found, *QUANTITIES) else f"{name}: {term.loss}"] = term.loss
    return found


def _subtitle(groups: Sequence[Group], how: How) -> str:
    data = groups[0].config.data
    levels = f"noise levels logsnr {how.logsnr[0]:g} to {how.logsnr[-1]:g}"
    return f"data: {data}; up to {how.images} held-out images at {levels}; {how.samples:,} samples each"


def report_study(study: Study, out: Path, failed: dict[str, dict[int, str]]) -> Path | None:
    """The page of a study that has run; a page that cannot be written costs a note."""
    page = out / "report.html"
    try:
        write_page(study_contents(study, out, failed)[0], page)
    except (OSError, ValueError) as error:
        note(f"cannot write {page}: {getattr(error, 'strerror', None) or error}")
        return None
    return page
