"""The part of xhat evaluate that says how few network calls are enough, as JSON values and on the terminal."""

from dataclasses import asdict, replace
from typing import Any

from xhat.commands.actions.real_images import conditions_of, real_images
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, note_once, progress_bar
from xhat.config.build import build_sampling
from xhat.config.features import features_for
from xhat.config.options import SamplingConfig
from xhat.diffusion.schedules import Schedule
from xhat.distributed import shared_out
from xhat.errors import ConfigError, UsageError
from xhat.evaluation.frontier import NEAR, frontier, steps_up_to
from xhat.registry import SAMPLERS
from xhat.runs.load import load
from xhat.sampling.generate import Sampling

LEAST = 50
"""Steps that are tried where nobody says how many: a rule of first order takes so many."""


def evaluate_frontier(run: str, data: str | None, n: int, features: str | None, steps: int | None, seed: int) -> dict[str, Any]:
    """FID of a run by sampler and number of steps.

    Args:
        run: a run folder, or its weights.
        data: images to compare with; by default MNIST's test set, or the run's own.
        n: samples of each way.
        features: a registered network; by default the shipped one.
        steps: the most that are tried; by default the run's own, and at least 50.
        seed: of the noise.

    Raises:
        UsageError: there are no features for its samples, or it cannot take so many steps.
    """
    shares = shared_out()
    trained = load(run)
    denoiser, own = trained.denoiser, trained.config.sampling
    seen_in = features_for(trained.shape, features)
    if seen_in is None or denoiser.decode is not None:
        raise UsageError(f"{run}: there is no feature network for what it draws: register one, and name it with --features")
    real = real_images(trained, data).distribution
    pixels, units = real.images.pixels, trained.shape.units
    most = steps or min(max(LEAST, own.steps), denoiser.schedule.steps or LEAST)
    ways = _ways(own, most, denoiser.schedule)
    names = list(dict.fromkeys(name for name, _ in ways))
    cond, told = conditions_of(trained, real, n), bool(trained.shape.classes or trained.shape.conditions)
    with progress_bar() as bar:
        task = bar.add_task("ways to draw", total=len(ways))
        found = frontier(
            denoiser,
            ways,
            trained.shape,
            n,
            seen_in,
            pixels if units is None else units(pixels[:]),
            seed=seed,
            cond=cond,
            progress=lambda done: bar.update(task, completed=done),
            shares=shares,
        )
    fewest = {name: found.fewest(name) for name in names}
    return {
        "run": run,
        "step": trained.step,
        "samples": n,
        "reference": len(real.images),
        "reference_is": real.kind,
        "features": seen_in.name,
        "guidance": own.guidance if told else 1.0,
        "spacing": own.spacing,
        "points": [asdict(point) for point in found.points],
        "best": asdict(found.best),
        "fewest": {name: None if point is None else asdict(point) for name, point in fewest.items()},
    }


def _ways(own: SamplingConfig, most: int, schedule: Schedule) -> list[tuple[str, Sampling]]:
    """Every sampler that can be named without arguments, the run's own first, in ever more steps.

    Raises:
        UsageError: there are not so many steps.
    """
    ways = []
    for name in dict.fromkeys([own.sampler, *SAMPLERS]):
        try:
            counts = steps_up_to(most)
            ways += [(name, build_sampling(replace(own, sampler=name, steps=count), schedule)) for count in counts]
        except ConfigError as error:  # it needs arguments, which nobody gave
            note_once(f"{name} is left out: {error}")
        except ValueError as error:
            raise UsageError(f"--steps {most}: {error}") from None
    return ways


def show_frontier(result: dict[str, Any]) -> None:
    """Print what `evaluate_frontier` found."""
    out, best = console(), result["best"]
    counts = list(dict.fromkeys(point["steps"] for point in result["points"]))
    table = new_table(text_column("FID by steps"), *(number_column(str(count)) for count in counts))
    for name in result["fewest"]:
        row = {point["steps"]: point["fid"] for point in result["points"] if point["sampler"] == name}
        table.add_row(name, *(f"{row[count]:.2f}" for count in counts))
    show_table(out, table)
    near = new_table(text_column(""), *map(number_column, ("steps", "calls", "FID", "seconds")))
    for name, point in result["fewest"].items():
        cells = ("–",) * 4 if point is None else _cells(point)
        near.add_row(name, *cells)
    out.print(f"\nfewest calls of the network for one sample with an FID within {NEAR:.0%} of the lowest:")
    show_table(out, near)
    kind = "held-out images" if result["reference_is"] == "held out" else "training images"
    out.print(
        f"lowest: {best['fid']:.2f}, {best['sampler']} in {best['steps']} steps; {result['samples']} samples of one noise"
    )
    out.print(f"against {result['reference']} {kind}, features: {result['features']}", soft_wrap=True)
    if result["guidance"] != 1:
        out.print(f"with guidance {result['guidance']:g}, which calls the network twice a step")


def _cells(point: dict[str, Any]) -> tuple[str, ...]:
    return str(point["steps"]), f"{point['calls']:.0f}", f"{point['fid']:.2f}", f"{point['seconds']:.0f}"
