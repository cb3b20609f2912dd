"""All that compare and report know of a trained run, kept in the run's folder so that it is measured once."""

import hashlib
import statistics
import warnings
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from xhat.analysis.profile import levels, profile
from xhat.config.build import build_objective, build_penalty, build_sampling
from xhat.config.config import Config
from xhat.config.data import build_parts, is_source
from xhat.config.features import features_for
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Condition
from xhat.errors import DamagedError
from xhat.evaluation.counts import QUICK
from xhat.evaluation.denoising import LEVELS, DenoisingError
from xhat.evaluation.fields import field_distance
from xhat.evaluation.floor import FloorErrors
from xhat.evaluation.level_errors import known_floor, level_errors
from xhat.evaluation.likelihood import bound, choose_first, form_for, is_density
from xhat.evaluation.penalties import mean_penalties
from xhat.evaluation.quality import Features
from xhat.evaluation.reference import RealImages, own_images
from xhat.files.atomic import read_bytes
from xhat.files.values import read_values, write_values
from xhat.pipelines.network import folder_of
from xhat.report.contents import Line
from xhat.runs.load import TrainedRun
from xhat.runs.metrics import read_metrics
from xhat.runs.places import WEIGHTS
from xhat.tensors import device_of

FOLDER, FORMAT = "measured", "xhat-measured-4"
GRID_ROWS, GRID_COLUMNS, CHAINS = 4, 10, 5
MOST_REAL = 50_000
"""Real images that samples are compared with, as FID is usually reported."""


@dataclass(frozen=True)
class How:
    """How a run is measured.

    Args:
        samples: drawn as the run's config says, seed 0.
        images: held-out images for the denoising error.
        bound_images: held-out images for the bound, eight network calls each.
        penalties: name -> expression of a penalty or of an image loss.
        logsnr: noise levels of the denoising error.
        features: a registered network that distances are measured in; None is the shipped one where it can read the images.
    """

    samples: int = QUICK.samples
    images: int = QUICK.error_images
    bound_images: int = QUICK.bound_images
    penalties: dict[str, str] = field(default_factory=lambda: {"total_variation": "total_variation"})
    logsnr: tuple[float, ...] = LEVELS
    features: str | None = None


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
        conditional: whether the network is told labels.
    """

    step: int
    numbers: dict[str, float]
    real: dict[str, float]
    lines: dict[str, Line]
    times: list[float]
    problems: list[str]
    conditional: bool


@dataclass(frozen=True)
class _Stored:
    """What the file holds.

    Attributes:
        key: of the weights that were measured.
        how: they were.
        found: of them.
    """

    key: str
    how: How
    found: Measured


def measured(run: Path, how: How) -> Measured:
    """The measurements of a run's folder, from its file if they are of the same weights and made alike.

    Raises:
        RunError: there are no weights.
    """
    key = f"{FORMAT} {hashlib.blake2b(read_bytes(run / WEIGHTS) if (run / WEIGHTS).exists() else b'').hexdigest()[:16]}"
    path = run / FOLDER / "measured.json"
    try:
        stored: _Stored = read_values(path, _Stored)
        if stored.key == key and stored.how == how:
            return stored.found
    except FileNotFoundError:
        pass
    except DamagedError as error:
        warnings.warn(f"{path} is damaged ({error}): measuring anew", stacklevel=2)
    found = _measure(run, how)
    write_values(path, asdict(_Stored(key, how, found)))
    return found


def _measure(run: Path, how: How) -> Measured:
    from xhat.runs.load import load

    trained = load(run)
    real = _real_images(_Data.of(trained))
    numbers, lines, problems = _errors(trained, real, how)
    try:
        numbers, lines = numbers | (found := _bound(trained, real, how))[0], lines | found[1]
    except ValueError as error:
        problems.append(f"no bound: {error}")
    lines |= _weightings(trained)
    (run / FOLDER).mkdir(exist_ok=True)
    of_samples, of_real = _samples(trained, run, real, how)
    return Measured(
        step=trained.step,
        numbers=numbers | of_samples | _times(run),
        real=of_real,
        lines=lines,
        times=_pictures(trained, real, run),
        problems=problems,
        conditional=trained.shape.classes is not None,
    )


@dataclass(frozen=True)
class _Data:
    """What says which real images a run is measured on: runs with the same share what is computed of them."""

    shape: DataShape
    names: tuple[str, ...]  # of the classes, in which equal shapes may differ
    data: str
    share: float
    seed: int
    network: str
    image_size: int | str | None

    @classmethod
    def of(cls, trained: TrainedRun) -> "_Data":
        config = trained.config
        seed = config.seed if is_source(config.data) else 0  # images of our own are split alike for every seed
        of_pipeline = folder_of(config.network) is not None  # whose parts make latents of the images
        network, size = (config.network, config.image_size) if of_pipeline else (Config().network, None)
        return cls(trained.shape, trained.shape.names, config.data, config.held_out, seed, network, size)


@lru_cache(maxsize=1)
def _real_images(data: _Data) -> RealImages:
    config = Config(
        data=data.data, held_out=data.share, seed=data.seed, network=data.network, image_size=data.image_size, label_dropout=0.0
    )
    return own_images(data.shape, build_parts(config, data.shape))


def _errors(trained: TrainedRun, real: RealImages, how: How) -> tuple[dict[str, float], dict[str, Line], list[str]]:
    """The error at each noise level, what of it is above the floor, and what could not be measured."""
    if real.measured.images.pixels.is_meta:
        return {}, {}, ["no error by noise level: trained on prompts alone, there are no images to measure it on"]
    try:
        errors = level_errors(trained.denoiser, real.measured, how.images, how.logsnr)
    except ValueError as error:
        return {}, {}, [f"no error by noise level: {error}"]
    found = errors.summary()
    numbers = {"denoising": found.bits_per_dim, "denoising_se": found.bits_per_dim_se}
    lines = {"x0_error": _line(found)}
    if not real.measured.held_out:
        return numbers, lines, ["too few images to hold any out: errors are of training images, and there is no floor"]
    try:
        floor = _floor(_Data.of(trained), how.images, tuple(errors.logsnr))
    except ValueError as error:
        return numbers, lines, [f"no floor: {error}"]
    excess = errors.over(floor)
    numbers |= {"excess": excess.above.bits_per_dim, "excess_se": excess.above.bits_per_dim_se}
    return numbers, lines | {"floor_lower": _line(excess.lower), "floor_upper": _line(excess.upper)}, []


def _line(of: DenoisingError) -> Line:
    return Line(of.logsnr, of.x0_error, of.x0_error_se)


@lru_cache(maxsize=4)
def _floor(data: _Data, images: int, logsnr: tuple[float, ...]) -> FloorErrors:
    """Computed once for all runs on the same data."""
    real = _real_images(data)
    assert real.others is not None
    return known_floor(real.others, real.measured, images, logsnr)


def _bound(trained: TrainedRun, real: RealImages, how: How) -> tuple[dict[str, float], dict[str, Line]]:
    """The variational bound, and its steps; a schedule in continuous time is taken in 1000 steps."""
    if real.measured.images.pixels.is_meta:
        raise ValueError("there are no images")
    chosen = choose_first(real, how.bound_images, QUICK.pilot_images, device_of(trained.denoiser.net))
    decoder, steps = form_for(trained.denoiser, trained.shape)
    found = bound(trained.denoiser, chosen, decoder=decoder, steps=steps)
    curve = found.curve
    width = [last - first + 1 for first, last in zip(curve.first, curve.last, strict=True)]
    middle = [(first + last) / 2 for first, last in zip(curve.first, curve.last, strict=True)]
    each = [bits / w for bits, w in zip(curve.bits_per_dim, width, strict=True)]
    seen = [(x, bits / w) for x, bits, w in zip(curve.logsnr, curve.bits_per_dim, curve.logsnr_width, strict=True) if w > 1e-6]
    by_level = Line([x for x, _ in seen], [y for _, y in seen])
    lines = {"bound": Line(middle, each), "bound_levels": by_level}
    return {"bits": found.bits_per_dim, "bits_se": found.bits_per_dim_se}, lines


def _samples(trained: TrainedRun, run: Path, real: RealImages, how: How) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers of samples, penalties of real images; and a picture of the first samples."""
    from xhat.evaluation.pictures import drawn, is_shown, save_grid, shown, thumbnails

    sampling, told = build_sampling(trained.config.sampling, trained.denoiser.schedule), _told(trained, real)
    images, _ = sampling.generate(trained.denoiser, trained.shape, how.samples, cond=told)
    shape, denoiser, known = trained.shape, trained.denoiser, real.measured.images.pixels[:MOST_REAL]
    if latents := denoiser.decode is not None:  # at most as many real ones: decoding is dear
        images, known = shown(images, shape, denoiser), known[: how.samples]
        known = known if known.is_meta else shown(known, shape, denoiser)
    known = known if shape.units is None else shape.units(known)
    if is_shown(shape, denoiser):
        first = images[: GRID_ROWS * GRID_COLUMNS]
        save_grid(thumbnails(first if latents else drawn(first, shape)), run / FOLDER / "samples.png", GRID_COLUMNS, zoom=1)
    penalties = {name: build_penalty(text, decoded=latents) for name, text in how.penalties.items()}
    of_real = {} if known.is_meta else mean_penalties(known[: QUICK.penalty_images], penalties)
    distances = _distances(images, known) if is_density(denoiser, shape) else {}
    return mean_penalties(images, penalties) | _quality(trained, images, how.features) | distances, of_real


def _distances(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Of fields, which no network of features knows."""
    found = field_distance(samples, real)
    numbers = {"histogram": found.histogram_sd}
    return numbers if found.spectrum_db is None else numbers | {"spectrum": found.spectrum_db}


def _told(trained: TrainedRun, real: RealImages) -> Condition | None:
    """What samples are told beside classes: what the real ones are."""
    return real.measured.told(len(real.measured), device_of(trained.denoiser.net)) if trained.shape.conditions else None


def _quality(trained: TrainedRun, samples: Tensor, name: str | None) -> dict[str, float]:
    """Distances in features, and digits where the shipped network reads the images."""
    if (features := _features(trained.shape, name)) is None:
        return {}
    found = features.compare(features.of(samples), _real_features(_Data.of(trained), name))
    far = found.distance
    numbers = {"fid": far.fid, "kid": far.kid}
    if far.recall is not None:
        numbers["recall"] = far.recall
    if found.reading is None:
        return numbers
    fewest = min(found.reading.digits) / statistics.fmean(found.reading.digits)
    return {**numbers, "read": found.reading.confident, "fewest": fewest}


@lru_cache(maxsize=2)
def _features(shape: DataShape, name: str | None) -> Features | None:
    """One network for samples and real images, whatever it is made of."""
    return features_for(shape, name)


@lru_cache(maxsize=2)
def _real_features(data: _Data, name: str | None) -> Tensor:
    """Of MNIST's test set, or of the images trained on: of others too few are held out for a distance of distributions."""
    features = _features(data.shape, name)
    assert features is not None
    return features.of(_real_images(data).distribution.images.pixels[:MOST_REAL])


def _weightings(trained: TrainedRun) -> dict[str, Line]:
    """The loss weighting and the timestep sampling distribution over the noise levels that are trained on."""
    objective = build_objective(trained.config, trained.denoiser)
    found = profile(objective, levels(trained.denoiser.schedule), second_moment=1.0)  # that of the data is for gradients
    top = max(found.effective)
    lines = {"density": Line(found.logsnr, found.density)}
    return lines | ({"weighting": Line(found.logsnr, [w / top for w in found.effective])} if top > 0 else {})


def _pictures(trained: TrainedRun, real: RealImages, run: Path) -> list[float]:
    """A picture of x0_hat on the way to the first samples; the times of its columns. None of what cannot be drawn."""
    from xhat.evaluation.pictures import is_shown, save_grid, shown, thumbnails
    from xhat.sampling.generate import trajectory

    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    if not is_shown(trained.shape, trained.denoiser):
        return []
    images, times = trajectory(trained.denoiser, sampling, trained.shape, CHAINS, cond=_told(trained, real))
    pictures = shown(images.flatten(0, 1), trained.shape, trained.denoiser)
    save_grid(thumbnails(pictures), run / FOLDER / "trajectory.png", len(times), zoom=1)
    return times


def _times(run: Path) -> dict[str, float]:
    """Median time of a training step, and all of the training time."""
    rows = [row for row in read_metrics(run) if row["images_per_second"]]  # it is rounded, so that it may be 0
    if not rows:
        return {}
    seconds = statistics.median(float(row["images"] / row["step"] / row["images_per_second"]) for row in rows)
    return {"milliseconds": 1000 * seconds, "minutes": float(rows[-1]["seconds"]) / 60}
