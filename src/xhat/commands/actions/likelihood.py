"""The likelihood part of xhat evaluate: the variational bound and the ODE, as JSON values and on the terminal."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from xhat.bound.estimate import BoundEstimate, Progress
from xhat.bound.terms import form_of
from xhat.commands.actions.real_images import real_images
from xhat.commands.terminal import console, note_once, progress_bar
from xhat.distributed import from_main, main_process, shared_out
from xhat.errors import UsageError
from xhat.evaluation.counts import THOROUGH
from xhat.evaluation.likelihood import (
    EVALUATIONS,
    Chosen,
    bound,
    choose_at_random,
    dequantizations_for,
    form_for,
    is_density,
    ode,
)
from xhat.evaluation.reference import Reference
from xhat.runs.load import TrainedRun, load
from xhat.runs.progress_file import ProgressFile, attempt
from xhat.tensors import bytes_of, device_of

SAVE_SECONDS = 10.0
DENSITY = "of the density of the values in the units of the data: below 0 where it is above 1"


def evaluate_bound(
    run: str, data: str | None, n: int | None, *, standard_error: float, exact: bool, steps: float | None, seed: int
) -> dict[str, Any]:
    """Measure the bound of a run on random held-out images; resumes if it was interrupted; writes bound.png into the run.

    Args:
        run: a run folder, or its weights.
        data: images to measure; by default the run's own, or MNIST's test set.
        n: at most so many of them; None is all.
        standard_error: as many images as this standard error takes; 0 measures all.
        exact: take every step.
        steps: T, or math.inf; None is the schedule's own, or 1000.
        seed: of the choice of images, and of all draws.
    """
    shares = shared_out()
    trained = load(run)
    real = real_images(trained, data)
    own = choose_at_random(real, n, THOROUGH.pilot_images, seed, device_of(trained.denoiser.net))
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    identity = [trained.step, _weights_hash(trained), real.measured.images.fingerprint(), real.measured.conditional]
    kept = ProgressFile(folder / "bound.progress.safetensors", [*identity, len(own.x0), exact, steps, seed])
    evaluations = None if exact else EVALUATIONS
    decoder, usual = form_for(trained.denoiser, trained.shape)
    steps = usual if steps is None else steps
    how: dict[str, Any] = {"standard_error": standard_error, "steps": steps, "decoder": decoder, "seed": seed}
    measure = partial(bound, trained.denoiser, own, evaluations=evaluations, shares=shares, **how)
    with _one_line("the bound"):
        parts = form_of(trained.denoiser.schedule, steps, decoder).count
        progress = from_main(kept.read(parts, len(own.x0), pilot=not exact) if main_process() else Progress())
        found = _kept_up(measure, progress, kept, len(own.x0))
    if main_process():
        kept.remove()
    reached = found.bits_per_dim_se <= standard_error if standard_error else None
    if reached is False:
        note_once(f"standard error {standard_error:g} not reached with {found.images:,} images{_way_out(found, own)}")
    picture = folder / "bound.png"
    drawn = main_process() and attempt(picture, lambda: _save_picture(found, picture))
    result = _as_json(found) | {"standard_error_reached": reached} | _about(run, trained, real.measured)
    return result | {"picture": str(picture) if drawn else None}


def _way_out(found: BoundEstimate, own: Chosen) -> str:
    if found.images < len(own.x0):  # as many as the first stage asked for: by chance not quite enough
        return f" ({found.bits_per_dim_se:.2g}): ask for a little less"
    return ": raise --n" if len(own.x0) < own.available else ": there are no more, name others with --data"


def _kept_up(measure: Callable[..., BoundEstimate], progress: Progress, kept: ProgressFile, total: int) -> BoundEstimate:
    """Measure with a bar; what there is so far is kept every ten seconds, and when it is interrupted."""
    with progress_bar() as bar:
        task, saved = bar.add_task("bound", total=total, completed=len(progress.terms)), time.monotonic()

        def report(now: Progress, se: float) -> None:
            nonlocal saved
            bar.update(task, completed=len(now.terms))
            if main_process() and time.monotonic() - saved > SAVE_SECONDS:
                kept.write(now)
                saved = time.monotonic()

        try:
            return measure(progress=progress, report=report)
        except KeyboardInterrupt:
            if main_process() and len(progress.terms):
                kept.write(progress)
            raise


def evaluate_ode(run: str, data: str | None, n: int, seed: int) -> dict[str, Any]:
    """The ODE likelihood of n random held-out images, see `ode`.

    Args:
        run: a run folder, or its weights.
        data: images to measure; by default the run's own, or MNIST's test set.
        n: at most so many of them.
        seed: of the choice of images, and of all draws.
    """
    shares = shared_out()
    trained = load(run)
    real = real_images(trained, data)
    own = choose_at_random(real, n, THOROUGH.pilot_images, seed, device_of(trained.denoiser.net))
    with progress_bar() as bar, _one_line("the ODE likelihood"):
        ways = dequantizations_for(trained.denoiser, trained.shape)
        task = bar.add_task("ode", total=len(ways) * len(own.x0))
        report = partial(bar.update, task)
        found = ode(trained.denoiser, own, dequantizations=ways, seed=seed, report=lambda n: report(advance=n), shares=shares)
    return {
        "bits_per_dim": found.bits_per_dim,
        "bits_per_dim_se": found.bits_per_dim_se,
        "bits_per_dim_95": found.limits,
        "network_evaluations_per_image": found.network_evaluations_per_image,
        "images": found.images,
        "dequantization": found.dequantization,
        "other_dequantization": {"name": found.other_dequantization, "bits_per_dim": found.other_bits_per_dim},
        "trace": "Hutchinson, 1 probe",
        "solver": "dopri5, rtol 1e-5, atol 1e-5",
    } | _about(run, trained, real.measured)


def show_bound(result: dict[str, Any]) -> None:
    """Print what `evaluate_bound` found."""
    _headline("variational bound", result)
    for name, what in (("prior", "what is left of x0 at t = 1"), ("diffusion", ""), ("reconstruction", "the decoder")):
        print(f"  {name:<14}  {result[name]:.4f}  {what}".rstrip())
    of = f"T = {result['steps']:,}" if result["steps"] else "continuous time"
    pilot = result["pilot_network_evaluations"]
    calls = f"{result['network_evaluations_per_image']:,} network evaluations per image"
    print(f"{of}; {calls}" + (f", and {pilot:,} for the pilot" if pilot else ""))
    if result["density"]:
        print(DENSITY)
    elif result["bits_per_dim"] > 8:
        print("more than 8 bits: the raw bytes are shorter; most bits are at the low noise")
        print("that this run did not learn")
    if result["picture"]:
        print(f"picture: {result['picture']}")


def show_ode(result: dict[str, Any]) -> None:
    """Print what `evaluate_ode` found."""
    _headline("ODE likelihood", result)
    other = result["other_dequantization"]
    if result["density"]:
        print(DENSITY)
    else:
        print(f"dequantization: {result['dequantization']}")
        print(f"  the smaller of two bounds; {other['name']}: {other['bits_per_dim']:.4f}")
    for how in ("trace", "solver"):
        print(f"{how}: {result[how]}")
    print(f"{result['network_evaluations_per_image']:.0f} network evaluations per image")


def _headline(name: str, result: dict[str, Any]) -> None:
    """The number, its limits, and what it was measured on: three lines, to fit a terminal."""
    what = "samples" if result["density"] else "images"
    kind = f"held-out {what}" if result["reference_is"] == "held out" else f"training {what}"
    given = ", given their labels" if result["conditional"] else ""
    total = f"{result['bits_per_dim']:.4f} ± {result['bits_per_dim_se']:.4f} bits/dim"
    console().print(Text.assemble(f"{name}: ", (total, "bold")), soft_wrap=True)
    low, high = result["bits_per_dim_95"]
    print(f"± standard error; 95 %: {low:.4f} to {high:.4f}")
    print(f"on {result['images']:,} {kind}{given}")


def _about(run: str, trained: TrainedRun, measured: Reference) -> dict[str, Any]:
    """What was measured, on what."""
    kind, conditional = measured.kind, measured.conditional
    density = is_density(trained.denoiser, trained.shape)
    return {"run": run, "step": trained.step, "reference_is": kind, "conditional": conditional, "density": density}


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What the library refuses is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


def _as_json(found: BoundEstimate) -> dict[str, Any]:
    curve = found.curve
    return {
        "bits_per_dim": found.bits_per_dim,
        "bits_per_dim_se": found.bits_per_dim_se,
        "bits_per_dim_95": found.limits,
        "prior": found.prior,
        "diffusion": found.diffusion,
        "reconstruction": found.reconstruction,
        "network_evaluations_per_image": found.network_evaluations_per_image,
        "pilot_network_evaluations": found.pilot_evaluations,
        "images": found.images,
        "steps": found.steps,
        "curve": {key: getattr(curve, key) for key in ("first", "last", "logsnr", "logsnr_width", "bits_per_dim")},
    }


def _save_picture(found: BoundEstimate, path: Path) -> None:
    from xhat.evaluation.pictures import save_bound

    save_bound(path, found.curve, f"{found.bits_per_dim:.3f} ± {found.bits_per_dim_se:.3f} bits/dim")


def _weights_hash(trained: TrainedRun) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for _, value in sorted(trained.denoiser.state_dict().items()):
        digest.update(bytes_of(value))
    return digest.hexdigest()
