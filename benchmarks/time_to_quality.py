"""How good digits are after so many seconds of training, by the demo's recipe and with one of its choices made otherwise.

usage: python benchmarks/time_to_quality.py FOLDER [--seconds 15 60 150 | --steps 128] [--seeds 3] [--recipe NAME]...

Each recipe is trained with each seed for the same seconds, compilation included, while nothing else runs on the machine; or
for the same steps, where recipes differ in nothing that takes time. The digits are judged by two networks that are trained for
this, and of other kinds than the one that the package ships. What is measured is kept in FOLDER, so that an interrupted call
goes on. Digits of somebody else's are judged, too: --samples NAME FILE.npz, with the array "images" as `xhat sample`
writes it (benchmarks/peer_quality.py draws them by other libraries' recipes).
"""

import hashlib
import json
import re
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from judges import JUDGES, judge
from torch import Tensor
from usage import Parser, count, guarded

from xhat.config.parsing import recipe_path
from xhat.data.images import to_float
from xhat.data.load import load
from xhat.evaluation.fid import distance

EVEN = {
    "times": "logit_normal(0, 1)",
    "terms.denoise.loss": "denoising(space=v, weighting=from_density(logit_normal(0, 1)))",
}
NARROW = {
    "times": "logit_normal(0.8, 0.8)",
    "terms.denoise.loss": "denoising(space=v, weighting=from_density(logit_normal(0.8, 0.8)))",
}
FIFTY = {"sampling.sampler": "ddim", "sampling.steps": "50"}
RECIPES: dict[str, dict[str, str]] = {
    "mnist": {},
    "adamw at 3e-3": {"optimizer.lr": "3e-3"},
    "50 steps of warm-up": {"optimizer.warmup_steps": "50"},
    "times around 0, not 0.8": EVEN,
    "times nearer to 0.8": NARROW,
    "adamw alone, at 3e-3": {"optimizer.muon_lr": "0", "optimizer.lr": "3e-3"},
    "last weights": {"ema": "0"},
    "50 steps of ddim": FIFTY,
    "no guidance": {"sampling.guidance": "1"},
    "the former preset": {"optimizer.lr": "3e-3", "optimizer.warmup_steps": "50", **EVEN, **FIFTY},
}
"""name -> values in place of the preset's."""
SAMPLES, CONFIDENT = 2000, 0.9


@dataclass(frozen=True)
class Judged:
    """What the judges say of some digits, each number one a judge.

    Attributes:
        fid: distance to the test images in its features, scaled to variance 1.
        readable: share that it reads as some digit with a confidence of at least 0.9.
        right: share that it so reads as the digit that was asked for; empty where nobody knows that.
        steps: trained.
    """

    fid: list[float]
    readable: list[float]
    right: list[float]
    steps: int


@torch.no_grad()
def judged(images: Tensor, labels: Tensor | None, folder: Path, steps: int) -> Judged:
    """What all judges say of uint8 images (N, 1, 28, 28)."""
    real = to_float(load("mnist", split="test").pixels[:])
    found = Judged([], [], [], steps)
    for name in JUDGES:
        network = judge(name, folder)
        of_real, of_these = network(real), network(to_float(images))
        scale = of_real.std()
        found.fid.append(distance(of_these / scale, of_real / scale, name).fid)
        sure, digit = network.head(of_these).softmax(1).max(1)
        found.readable.append(float((sure >= CONFIDENT).double().mean()))
        if labels is not None:
            found.right.append(float(((sure >= CONFIDENT) & (digit == labels)).double().mean()))
    return found


def measured(recipe: str, budget: dict[str, str], seed: int, folder: Path) -> Judged:
    """A training of so many seconds or steps, judged; from the folder if it has been done."""
    place = folder / kept_as(recipe, budget, seed)
    path = place.with_suffix(".json")
    if path.exists():
        return Judged(**json.loads(path.read_text()))
    values = {**RECIPES[recipe], **budget, "seed": f"{seed}"}
    options = [word for key, value in values.items() for word in (f"--{key}", value)]
    xhat = [sys.executable, "-m", "xhat"]
    if place.exists():  # of a call that was interrupted: its clock has run on
        place.rename(place.with_name(f"{place.name}-interrupted"))
    quietly([*xhat, "train", "mnist", "--run", str(place), *options])
    out = place / "samples.npz"
    quietly([*xhat, "sample", str(place), "--n", str(SAMPLES), "--out", str(out)])
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    found = of_file(out, folder, rows[-1]["step"])
    path.write_text(json.dumps(asdict(found)))
    return found


def kept_as(recipe: str, budget: dict[str, str], seed: int) -> str:
    """A name for all that a training depends on, the preset's own values among them."""
    values = json.dumps({**RECIPES[recipe], **budget}, sort_keys=True) + recipe_path("mnist").read_text()
    of_values = hashlib.blake2b(values.encode(), digest_size=6).hexdigest()
    return re.sub("[^a-z0-9]+", "-", f"{recipe} {of_values} {seed}")


def quietly(command: list[str]) -> None:
    """Run a command, whose words nobody needs."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def of_file(path: Path, folder: Path, steps: int = 0) -> Judged:
    """What the judges say of the images of an .npz, which may know its steps."""
    arrays = np.load(path)
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    return judged(
        images, torch.from_numpy(arrays["labels"]) if "labels" in arrays else None, folder, int(arrays.get("steps", steps))
    )


def line(name: str, found: list[Judged]) -> str:
    """Means over the seeds, and their standard deviation."""
    cells = []
    for values in ([f.fid for f in found], [f.readable for f in found], [f.right for f in found]):
        for column in zip(*values, strict=True):
            mean, sd = statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else 0.0
            cells.append(f"{mean:.3f} ± {sd:.3f}" if len(column) > 1 else f"{mean:.3f}        ")
    return f"{name:26}{statistics.fmean(f.steps for f in found):8.0f}" + "".join(f"{cell:>20}" for cell in cells)


def main() -> None:
    """Train, judge, print."""
    parser = Parser(description="how good the demo's digits are after so many seconds")
    parser.add_argument("folder", type=Path, help="where runs and judges are kept")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--seconds", type=count, nargs="+", default=[15, 60, 150], help="of training")
    lengths.add_argument("--steps", type=count, nargs="+", help="of training, instead of seconds")
    parser.add_argument("--seeds", type=count, default=3, help="trainings of each recipe")
    parser.add_argument("--recipe", choices=list(RECIPES), action="append", help="this one alone; again for several")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="a config value of all recipes"
    )
    parser.add_argument(
        "--samples", nargs=2, action="append", default=[], metavar=("NAME", "FILE.npz"), help="also judge these"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("mean ± standard deviation over seeds; judges: " + ", ".join(JUDGES))
    heads = [f"{what} {name}" for what in ("FID", "readable", "right") for name in JUDGES]
    print(f"{'':26}{'steps':>8}" + "".join(f"{head:>20}" for head in heads))
    train = load("mnist")
    assert train.labels is not None
    of_train = judged(torch.as_tensor(train.pixels[:SAMPLES]), train.labels[:SAMPLES], options.folder, 0)
    print(line("training images", [of_train]))
    for name, path in options.samples:
        print(line(name, [of_file(Path(path), options.folder)]), flush=True)
    for amount in options.steps or options.seconds:
        print(f"{amount} {'steps' if options.steps else 'seconds'}")
        steps, minutes = (amount, "null") if options.steps else ("null", amount / 60)
        budget = {"max_steps": f"{steps}", "max_minutes": f"{minutes}", **dict(options.set)}
        for recipe in options.recipe or RECIPES:
            found = [measured(recipe, budget, seed, options.folder) for seed in range(options.seeds)]
            print(line(recipe, found), flush=True)


if __name__ == "__main__":
    guarded(main)
