"""Contents of reports that look like real ones, without a run."""

import math
import random
from dataclasses import replace
from functools import cache

from xhat.data.load import load
from xhat.evaluation.pictures import save_grid
from xhat.report.contents import Column, Contents, Entry, Floor, Line, Mark, Number, Picture

NASTY = '</script><b>"x" & %{y} <!-- \udce9\x07'
NAMES = [
    "noise, all levels alike",
    "v, min-SNR 5",
    NASTY,
    "x0, truncated SNR + smooth(0.05) every 4 steps, gradient ratio 0.1",
    "flow, logit-normal",
    "EDM",
    "failed run",
]
LOGSNR = [float(level) for level in range(-8, 9)]
BETWEEN = [level - 0.5 for level in LOGSNR]
OTHER = "floor of other images"
IMAGES = [2000.0 * 1.12**i for i in range(60)]
NAN = math.nan
COLUMNS = [
    Column("fid", "FID", "Fréchet distance to held-out images in features; lower is better.", "the deviation of 3 seeds"),
    Column("bits", "bound, bits/dim", "Variational bound on held-out images; lower is better.", "the standard error"),
    Column("tv", "total variation", "Mean absolute difference of neighbours; real images say what is right.", "", 0.0813),
    Column("lap", "curvature", "Mean squared Laplacian; real images say what is right.", "the standard error", 0.0425),
    Column("images", "images seen", "Length of training."),
    Column("steps", "steps/s", "Training steps per second on the machine below; higher is better."),
]

MANY_COLUMNS = [  # those of `collect`, with two penalties
    Column("bits", "bound, bits/dim", "", "the standard error"),
    Column("denoising", "bits/dim in range", "", "the standard error"),
    Column("excess", "excess, bits/dim", "", "the standard error"),
    Column("fid", "FID", "", "the deviation of 3 seeds"),
    Column("kid", "KID", "", "the deviation of 3 seeds"),
    Column("read", "read", ""),
    Column("fewest", "rarest", ""),
    Column("tv", "total variation", "", "the deviation of 3 seeds", 0.0813),
    Column("milliseconds", "ms/step", ""),
    Column("minutes", "minutes", ""),
]


def example(count: int = 7, refresh: int | None = None) -> Contents:
    """A report on `count` entries, of which the seventh failed and the third has a nasty name and gaps."""
    names = [*NAMES, *[f"sweep, seed {i}" for i in range(len(NAMES), count)]][:count]
    return Contents(
        "Which loss for digits?",
        "Seven objectives on MNIST, 1.8 M images each, three seeds; measured on 2,000 held-out images.",
        [_entry(i, name) for i, name in enumerate(names)],
        COLUMNS,
        {"floor of MNIST": Floor(_floor(1.0), _floor(1.6, known_to=2.0)), OTHER: Floor(_floor(0.9, BETWEEN), Line([], []))},
        [f"t = {t / 8:.2f}" for t in range(8, -1, -1)],
        ["tv", "lap"],
        notes=["The bound of “EDM” was not measured: its decoder is not discrete.", "1 of 21 runs failed."],
        refresh=refresh,
    )


def minimal() -> Contents:
    """A report on one entry about which next to nothing is known."""
    return Contents("One run", "", [Entry("only", loss=Line([1.0, 2.0], [3.0, NAN]))], [])


def cliff() -> Contents:
    """A report on three entries whose floor falls to nothing, as that of a finite data set does, and on many quantities."""
    tiny = [1e-38, *[0.0] * 4]
    lower, upper = _floor(0.9), _floor(1.0)
    floor = Floor(Line(LOGSNR, [*lower.y[:-5], *tiny]), Line(LOGSNR, [*upper.y[:-5], *[0.098] * 5]))
    entries = [replace(_entry(i, NAMES[i]), floor="floor") for i in range(2)]
    numbers = {c.key: Number(1.3163, 0.0091, Mark.BEST) if c.spread else Number(0.9833) for c in MANY_COLUMNS}
    entries.append(Entry(NAMES[3], numbers))
    return replace(example(), title="Many quantities", entries=entries, columns=MANY_COLUMNS, floors={"floor": floor}, notes=[])


def _entry(i: int, name: str) -> Entry:
    config = {"data": "mnist", "schedule": "cosine", "batch_size": "128", "target": ("noise", "v", "x0", "flow")[i % 4]}
    config["terms.denoise.loss"] = f"denoising(space={config['target']}, weighting={('constant', 'min_snr(5)')[i % 2]})"
    environment = {"device": "NVIDIA H100" if i % 3 else "NVIDIA H200", "torch": "2.13.0", "python": "3.11.7"}
    if name == "failed run":
        failures = ["seed 1: the loss is not finite at step 1234: lower the learning rate", "seed 2: out of memory <b>here</b>"]
        return Entry(name, failed=failures, config=config, environment=environment)
    rng = random.Random(i)
    error = [e * (1.06 + 0.03 * i + 0.05 * rng.random() + 0.004 * i * abs(x)) for x, e in zip(LOGSNR, _floor(1).y, strict=True)]
    if name == NASTY:
        error[5] = NAN
    scale = (1.0, 0.3, 0.05, 40.0, 2.0, 6.0)[i % 6]
    fall = [0.02 + 0.9 / (1 + (x / 9000) ** 0.8) for x in IMAGES]
    loss = [scale * y * (1 + 0.12 * rng.gauss(0, 1)) for y in fall]
    marks = (Mark.NONE, Mark.BEST, Mark.TIE, Mark.NONE)
    numbers = {
        "fid": Number(3.1 + 1.7 * abs(i - 1) + rng.random(), 0.21 + 0.3 * rng.random(), marks[i % 4] if i < 4 else Mark.NONE),
        "bits": Number(1.31 + 0.021 * i, 0.0042, marks[(i + 1) % 4] if i < 4 else Mark.NONE) if i != 5 else Number(NAN),
        "tv": Number(0.0813 * (1.18 - 0.09 * i)),
        "lap": Number(0.0425 * (1.3 - 0.11 * i), 0.0011),
        "images": Number(1843200.0),
        "steps": Number(41.27 - 2.3 * i, NAN, Mark.BEST if i == 0 else Mark.NONE),
    }
    return Entry(
        name,
        numbers,
        Line(LOGSNR, error, [0.02 * e for e in error]),
        {4: None, 5: OTHER}.get(i, "floor of MNIST"),
        Line(IMAGES, loss),
        Line(IMAGES[::6], [1.3 + 0.02 * i + 3.1 * f for f in fall[::6]], [0.02] * 10),
        Line(LOGSNR, _largest_one([math.exp(-((x - 2 * i + 4) ** 2) / 30) for x in LOGSNR])),
        Line(LOGSNR, [0.11 * math.exp(-((x - i + 2) ** 2) / 26) for x in LOGSNR]),
        Line([float(2**k) for k in range(11)], [0.4 * (1 + 0.1 * i) * 2.0 ** (-1.25 * k) for k in range(11)]),
        Line(LOGSNR, [e * math.exp(x) / 2 / math.log(2) for x, e in zip(LOGSNR, error, strict=True)]),
        _digits(40 * i, 8, f"32 digits drawn by entry {i}"),
        _digits(40 * i + 300, 9, f"4 digits from noise to sample, entry {i}"),
        config=config,
        environment=environment,
    )


def _floor(factor: float, levels: list[float] = LOGSNR, known_to: float = 9.0) -> Line:
    y = [factor * 0.95 / (1 + math.exp(0.9 * (x + 2.2))) ** 1.02 + 1e-4 if x < known_to else NAN for x in levels]
    return Line(levels, y, [0.01 * e for e in y])


def _largest_one(values: list[float]) -> list[float]:
    return [v / max(values) for v in values]


@cache
def _digits(first: int, columns: int, alt: str) -> Picture:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        save_grid(load("mnist").pixels[first : first + 4 * columns], path, columns)
        return Picture(path.read_bytes(), alt)
