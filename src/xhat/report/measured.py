"""All that compare and report know of a trained run, kept in the run's folder so that it is measured once."""

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.analysis.profile import anatomy, levels
from xhat.config.build import build_objective
from xhat.data.images import Images, to_float
from xhat.evaluation.denoising import LEVELS, reached, summary, x0_errors
from xhat.evaluation.floor import FloorErrors
from xhat.files import write_bytes
from xhat.report.contents import Line
from xhat.runs.weights import WEIGHTS, TrainedRun

FOLDER, FORMAT = "measured", "xhat-measured-1"
PILOT, GRID_ROWS, GRID_COLUMNS, CHAINS = 256, 4, 10, 5
MOST_FLOOR_NUMBERS = 50_000_000  # of the images that the floor looks at: all of MNIST's, 4,000 colour images of 64 pixels


@dataclass(frozen=True)
class How:
    """How a run is measured.

    Args:
        samples: drawn as the run's config says, seed 0.
        images: held-out images for the denoising error.
        bound_images: held-out images for the bound, eight network calls each.
        penalties: name -> expression of a penalty or of an image loss.
        logsnr: noise levels of the denoising error.
    """

    samples: int = 1000
    images: int = 500
    bound_images: int = 300
    penalties: dict[str, str] = field(default_factory=lambda: {"total_variation": "total_variation"})
    logsnr: tuple[float, ...] = LEVELS


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        step: of the weights.
        numbers: by the name of the quantity; "NAME_se" is its standard error.
        real: penalties of real images.
        lines: curves by name; those of the floor are called floor_lower and floor_upper.
        times: of the columns of the trajectory.
        problems: what could not be measured, and why.
    """

    step: int
    numbers: dict[str, float]
    real: dict[str, float]
    lines: dict[str, Line]
    times: list[float]
    problems: list[str]


def measured(run: Path, how: How) -> Measured:
    """The measurements of a run's folder, from its file if they are of the same weights and made alike.

    Raises:
        RunError: there are no weights.
    """
    key = f"{FORMAT} {hashlib.blake2b((run / WEIGHTS).read_bytes() if (run / WEIGHTS).exists() else b'').hexdigest()[:16]}"
    path = run / FOLDER / "measured.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key and stored["how"] == json.loads(json.dumps(asdict(how))):
            values = stored["found"]
            return Measured(**{**values, "lines": {name: Line(**line) for name, line in values["lines"].items()}})
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        pass  # none yet, or damaged
    found = _measure(run, how)
    write_bytes(path, json.dumps({"key": key, "how": asdict(how), "found": asdict(found)}).encode())
    return found


def _measure(run: Path, how: How) -> Measured:
    from xhat.data.load import load_parts
    from xhat.runs.weights import load

    trained = load(run)
    training, held_out = load_parts(trained.config.data, trained.shape.size, trained.config.held_out)
    real = _labelled(held_out or training, trained)
    numbers, lines, problems = _errors(trained, real, held_out is not None, how)
    try:
        numbers, lines = numbers | (bound := _bound(trained, training, real, how))[0], lines | bound[1]
    except ValueError as error:
        problems.append(f"no bound: {error}")
    lines |= _weightings(trained)
    (run / FOLDER).mkdir(exist_ok=True)
    of_samples, of_real = _samples(trained, run, real, how)
    return Measured(trained.step, numbers | of_samples | _times(run), of_real, lines, _pictures(trained, run), problems)


def _errors(trained: TrainedRun, real: Images, held_out: bool, how: How) -> tuple[dict[str, float], dict[str, Line], list[str]]:
    """The error at each noise level, what of it is above the floor, and what could not be measured."""
    config = trained.config
    try:
        logsnr = tuple(reached(trained.denoiser.schedule, how.logsnr))
    except ValueError as error:
        return {}, {}, [f"no error by noise level: {error}"]
    x0, labels = _given(trained, real, how.images)
    errors = x0_errors(trained.denoiser, x0, labels, logsnr)
    found = summary(errors, logsnr)
    numbers = {"denoising": found.bits_per_dim, "denoising_se": found.bits_per_dim_se}
    lines = {"x0_error": Line(list(logsnr), found.x0_error, found.x0_error_se)}
    if not held_out:
        return numbers, lines, ["too few images to hold any out: errors are of training images, and there is no floor"]
    try:
        floor = _floor(config.data, trained.shape.size, config.held_out, labels is not None, len(x0), logsnr)
    except ValueError as error:
        return numbers, lines, [f"no floor: {error}"]
    above, low, high = (summary(e, logsnr) for e in (errors - floor.lower, floor.lower, floor.upper))
    numbers |= {"excess": above.bits_per_dim, "excess_se": above.bits_per_dim_se}
    lines |= {"floor_lower": Line(list(logsnr), low.x0_error, low.x0_error_se)}
    lines |= {"floor_upper": Line(list(logsnr), high.x0_error, high.x0_error_se)}
    return numbers, lines, []


def _given(trained: TrainedRun, images: Images, count: int) -> tuple[Tensor, Tensor | None]:
    """The first images and their labels, for the network."""
    device = next(trained.denoiser.net.parameters()).device
    labels = None if images.labels is None else images.labels[:count].to(device)
    return to_float(images.pixels[:count]).to(device), labels


def _labelled(images: Images, trained: TrainedRun) -> Images:
    """The images with labels as the network knows them: none, their own, or the null class."""
    if trained.shape.classes is None:
        return Images(images.pixels, None, 0, images.name)
    labels = torch.full((len(images),), trained.shape.classes) if images.labels is None else images.labels
    return Images(images.pixels, labels, trained.shape.classes, images.name)


@lru_cache(maxsize=4)
def _floor(data: str, size: int, share: float, labelled: bool, count: int, levels: tuple[float, ...]) -> FloorErrors:
    """Computed once for all runs on the same data."""
    from xhat.data.load import load_parts
    from xhat.evaluation.floor import floor_errors

    training, held_out = load_parts(data, size, share)
    assert held_out is not None
    most = max(1000, MOST_FLOOR_NUMBERS // training.pixels[0].numel())
    if len(training) > most:
        training = training.chosen(torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:most])
    known, x0, own = to_float(training.pixels), to_float(held_out.pixels[:count]), held_out.labels
    if not labelled or training.labels is None or own is None:
        return floor_errors(known, x0, logsnr=levels)
    return floor_errors(known, x0, training.labels, own[:count], levels)


def _bound(trained: TrainedRun, training: Images, real: Images, how: How) -> tuple[dict[str, float], dict[str, Line]]:
    """The variational bound, and its steps; a schedule in continuous time is taken in 1000 steps."""
    from xhat.bound.estimate import estimate_bound

    aside = _labelled(training.chosen(torch.arange(min(PILOT, len(training)))), trained)
    (x0, labels), (pilot, pilot_labels) = _given(trained, real, how.bound_images), _given(trained, aside, PILOT)
    cond, pilot_cond = (None if of is None else {"label": of} for of in (labels, pilot_labels))
    found = estimate_bound(trained.denoiser, x0, pilot, cond=cond, pilot_cond=pilot_cond)
    curve = found.curve
    width = [last - first + 1 for first, last in zip(curve.first, curve.last, strict=True)]
    middle = [(first + last) / 2 for first, last in zip(curve.first, curve.last, strict=True)]
    each = [bits / w for bits, w in zip(curve.bits_per_dim, width, strict=True)]
    seen = [(x, bits / w) for x, bits, w in zip(curve.logsnr, curve.bits_per_dim, curve.logsnr_width, strict=True) if w > 1e-6]
    by_level = Line([x for x, _ in seen], [y for _, y in seen])
    return {"bits": found.bits_per_dim, "bits_se": found.bits_per_dim_se}, {
        "bound": Line(middle, each),
        "bound_levels": by_level,
    }


def _samples(trained: TrainedRun, run: Path, real: Images, how: How) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers of samples, penalties of real images; and a picture of the first samples."""
    from xhat.config.build import build_sampling
    from xhat.evaluation.fid import distance, features_of, read_digits
    from xhat.evaluation.pictures import save_grid
    from xhat.networks.digits import MNISTFeatures

    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    images, _ = sampling.generate(trained.denoiser, trained.shape, how.samples)
    save_grid(images[: GRID_ROWS * GRID_COLUMNS], run / FOLDER / "samples.png", GRID_COLUMNS, zoom=1)
    penalties = {name: penalty_of(text) for name, text in how.penalties.items()}
    found = {name: float(penalty(to_float(images)).mean()) for name, penalty in penalties.items()}
    of_real = {name: float(penalty(to_float(real.pixels[:2000])).mean()) for name, penalty in penalties.items()}
    if (trained.shape.channels, trained.shape.size) == (1, 28):
        network = MNISTFeatures.trained()
        features = features_of(network, images)
        far = distance(features, _real_features(trained.config.data, trained.config.held_out), "mnist")
        reading = read_digits(network.read(features))
        found |= {"fid": far.fid, "kid": far.kid, "read": reading.confident}
        found |= {"fewest": min(reading.digits) / statistics.fmean(reading.digits)}
    return found, of_real


@lru_cache(maxsize=2)
def _real_features(data: str, share: float) -> Tensor:
    """Of MNIST's test set, or of the images trained on: of others too few are held out for a distance of distributions."""
    from xhat.data.load import load_parts
    from xhat.evaluation.fid import features_of
    from xhat.networks.digits import MNISTFeatures

    training, held_out = load_parts(data, 28, share)
    images = held_out if held_out is not None and held_out.found.part == "test" else training
    return features_of(MNISTFeatures.trained(), images.pixels)


def penalty_of(text: str) -> Callable[[Tensor], Tensor]:
    """The function of images that an expression of a penalty or of an image loss stands for.

    Raises:
        ValueError: it stands for nothing, or for one that compares with a clean image.
    """
    from xhat.config.expressions import evaluate
    from xhat.config.names import OF_TERMS
    from xhat.losses.image import ImageLoss
    from xhat.losses.penalties import Paired
    from xhat.objective.terms import Loss

    made = evaluate(text, OF_TERMS)
    decode = made.decode if isinstance(made, ImageLoss) else None
    penalty = made.penalty if isinstance(made, ImageLoss) else made
    if isinstance(penalty, Paired | Loss) or not callable(penalty):
        raise ValueError(f"{text} is no function of images alone")
    return penalty if decode is None else lambda images: penalty(decode(images))


def _weightings(trained: TrainedRun) -> dict[str, Line]:
    """What is learned, and where the samples go, over the noise levels that are trained on."""
    objective = build_objective(trained.config, trained.denoiser)
    found = anatomy(objective, levels(trained.denoiser.schedule), second_moment=1.0)  # that of the data is for gradients
    top = max(found.effective)
    lines = {"density": Line(found.logsnr, found.density)}
    return lines | ({"weighting": Line(found.logsnr, [w / top for w in found.effective])} if top > 0 else {})


def _pictures(trained: TrainedRun, run: Path) -> list[float]:
    """A picture of x0_hat on the way to the first samples; the times of its columns."""
    from xhat.config.build import build_sampling
    from xhat.evaluation.pictures import save_grid
    from xhat.sampling.generate import trajectory

    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    images, times = trajectory(trained.denoiser, sampling, trained.shape, CHAINS)
    save_grid(images.flatten(0, 1), run / FOLDER / "trajectory.png", len(times), zoom=1)
    return times


def _times(run: Path) -> dict[str, float]:
    """Median time of a training step, and all of the training time."""
    rows = [row for row in metrics(run) if row["images_per_second"]]  # it is rounded, so that it may be 0
    if not rows:
        return {}
    seconds = statistics.median(float(row["images"] / row["step"] / row["images_per_second"]) for row in rows)
    return {"milliseconds": 1000 * seconds, "minutes": float(rows[-1]["seconds"]) / 60}


def metrics(run: Path) -> list[Mapping[str, Any]]:
    """The rows of a run's metrics.jsonl; the last may be cut short while training writes it, or by a crash."""
    path = run / "metrics.jsonl"
    rows: list[Mapping[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not row.keys() >= {"step", "images", "seconds", "images_per_second"}:
            break
        rows.append(row)
    return rows
