"""Two quantities of a study beside each other: which change is better than another in both, and which are the best to be had.

usage: python benchmarks/pareto.py RUNS X Y [--picture FILE.png]

RUNS is the folder of `xhat compare`, X and Y are quantities that it measured, of which less is better: fid, bits, excess, or
the name of a penalty. A change dominates another where both means are smaller and at least one of them by more than chance,
Student's 95 % over seeds. The picture has a large point for each change, small ones for its seeds, and the line of the front.
"""

import argparse
import math
from pathlib import Path

from matplotlib.figure import Figure
from usage import folder, guarded

from xhat.errors import UsageError
from xhat.evaluation.pictures import COLORS, GREY
from xhat.report.measured import measured
from xhat.report.of_study import study_how
from xhat.studies.outcome import Outcome
from xhat.studies.study import STUDY_FILE, study_from_file


def outcomes_of(runs: Path, names: tuple[str, str]) -> list[Outcome]:
    """Each change's seeds.

    Raises:
        UsageError: the study has no such quantity.
    """
    study, _ = study_from_file(runs / STUDY_FILE)
    how = study_how(study, [study.folder(runs, *run) for run in study.runs])
    found = []
    for change in study.changes:
        numbers = {seed: measured(study.folder(runs, change, seed), how).numbers for seed in study.seeds}
        found.append(Outcome.of(change, numbers, {}, study.seeds))
    for name in names:
        if not any(math.isfinite(outcome.mean(name)) for outcome in found):
            known = sorted({q for outcome in found for q in outcome.values if not q.endswith("_se")})
            raise UsageError(f"{runs} has no {name}; known: {', '.join(known)}")
    return found


def dominates(one: Outcome, other: Outcome, names: tuple[str, str]) -> bool:
    """Whether it is better in both, and in one of them by more than chance."""
    better = all(one.mean(name) < other.mean(name) for name in names)
    return better and not all(one.ties(other, name) for name in names)


def picture(path: Path, found: list[Outcome], front: list[Outcome], names: tuple[str, str]) -> None:
    """A point for each change, and the front."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    x, y = names
    line = sorted(front, key=lambda outcome: outcome.mean(x))
    axis.step([o.mean(x) for o in line], [o.mean(y) for o in line], where="post", color="black", linewidth=1, linestyle="--")
    for number, outcome in enumerate(found, 1):
        color, at = COLORS[0] if outcome in front else GREY, (outcome.mean(x), outcome.mean(y))
        axis.plot(outcome.values[x], outcome.values[y], ".", color=color, markersize=4, alpha=0.4)
        axis.plot(*at, "o", color=color, markersize=13, markeredgecolor="white", label=f"{number}  {outcome.name}")
        axis.annotate(str(number), at, color="white", fontsize=8, ha="center", va="center")
    figure.legend(loc="outside right center", frameon=False, fontsize=9, handlelength=0, handletextpad=0, markerscale=0)
    axis.set_xlabel(f"{x}: less is better")
    axis.set_title(f"{y}: less is better", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    """The table, and the picture."""
    parser = argparse.ArgumentParser(description="which changes of a study are better than others in two quantities")
    parser.add_argument("runs", type=folder, help="folder of xhat compare")
    parser.add_argument("x", help="a quantity: fid, bits, excess, the name of a penalty")
    parser.add_argument("y", help="another")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    names = (options.x, options.y)
    found = outcomes_of(options.runs, names)
    front = [one for one in found if not any(all(o.mean(n) < one.mean(n) for n in names) for o in found)]
    width = max(len(outcome.name) for outcome in found)
    print(
        f"{'':{width}} {options.x:>9} {options.y:>9}   *: on the front; then what it is better than in both, in one for certain"
    )
    for one in sorted(found, key=lambda outcome: outcome.mean(options.x)):
        worse = [other.name for other in found if dominates(one, other, names)]
        print(
            f"{one.name:{width}} {one.mean(options.x):9.3g} {one.mean(options.y):9.3g}   {'*' if one in front else ' '} "
            f"{'; '.join(worse)}".rstrip()
        )
    if options.picture:
        picture(options.picture, found, front, names)


if __name__ == "__main__":
    guarded(main)
