"""What xhat evaluate does."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.bound.student import limits
from xhat.commands.actions.frontier import evaluate_frontier, show_frontier
from xhat.commands.actions.likelihood import evaluate_bound, evaluate_ode, show_bound, show_ode
from xhat.commands.actions.real_images import conditions_of, real_images
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, notes, print_json, progress_bar
from xhat.config.build import build_objective, build_penalty, build_sampling
from xhat.config.features import features_for
from xhat.config.watch import build_watched
from xhat.data.arrays import load_array
from xhat.data.load import load as load_data
from xhat.data.parts import in_channels
from xhat.data.shape import DataShape
from xhat.data.size import said
from xhat.data.summary import notices
from xhat.data.wording import counted
from xhat.diffusion.denoiser import Condition
from xhat.distributed import Shares, main_process, shared_out
from xhat.errors import UsageError
from xhat.evaluation.counts import THOROUGH
from xhat.evaluation.fields import field_distance
from xhat.evaluation.level_errors import level_errors
from xhat.evaluation.penalties import mean_penalties, own_penalties
from xhat.evaluation.pictures import shown
from xhat.evaluation.quality import Features
from xhat.pipelines.network import folder_of, home_of, picture_of
from xhat.report.comparable import standing_penalties
from xhat.runs.load import TrainedRun, load
from xhat.sources.values import values_of


def act(options: Any) -> int:
    """Print what was measured of a run, as tables or as one JSON object."""
    result, show = _measure(options)
    if not main_process():
        return 0
    if options.json:
        print_json(result)
    else:
        show(result)
    return 0


def _measure(options: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """The measurement that was asked for, and how to show it."""
    run_, data, n, seed = options.run, options.data, options.n, options.seed
    if options.ode:
        return evaluate_ode(run_, data, n or THOROUGH.ode_images, seed), show_ode
    if options.bound:
        error, steps = options.standard_error or 0.0, options.bound_steps
        most = n or (None if error else THOROUGH.bound_images)
        return evaluate_bound(run_, data, most, standard_error=error, exact=options.exact, steps=steps, seed=seed), show_bound
    if options.frontier:
        return evaluate_frontier(run_, data, n or THOROUGH.samples, options.features, options.steps, seed), show_frontier
    n, images = n or THOROUGH.samples, options.images or THOROUGH.error_images
    return _evaluate(run_, data, n, options.samples, options.features, images, seed, options.compile), _show


def _evaluate(
    run_: str, data: str | None, n: int, samples: str | None, features: str | None, images: int, seed: int, compile: bool
) -> dict[str, Any]:
    """All that is measured of samples, and the error by noise level, as JSON values."""
    shares = shared_out()
    trained = load(run_)
    real, latents = real_images(trained, data), trained.denoiser.decode is not None
    reference = real.distribution
    if reference.images.pixels.is_meta:
        raise UsageError(f"{run_} was trained on prompts alone: name images to measure on, --data FOLDER")
    seen_in = features_for(trained.shape, features)
    cond = conditions_of(trained, reference, n)
    drawn = _generated(trained, n, seed, cond, shares, compile) if samples is None else _read(samples, trained)
    of_real = reference.images.pixels[: THOROUGH.penalty_images]
    if latents:  # at most as many real ones as samples: decoding is dear
        drawn = shown(drawn, trained.shape, trained.denoiser, shares) if samples is None else drawn
        of_real = shown(of_real[: max(2, len(drawn))], trained.shape, trained.denoiser, shares)
    elif trained.shape.units is not None:
        of_real = trained.shape.units(of_real)
    result: dict[str, Any] = {"run": run_, "step": trained.step, "samples": len(drawn), "reference": len(of_real)}
    result |= {"of": "images" if trained.shape.is_picture or latents else "samples", "decoded": latents}
    result |= {"reference_is": reference.kind, **_quality(seen_in, drawn, of_real, shares)}
    if not (latents or trained.shape.is_eight_bit):
        result |= _of_fields(drawn, of_real)
    standing = standing_penalties(trained.config, [trained.shape])
    penalties = {name: build_penalty(text, decoded=latents) for name, text in standing.items()}
    penalties |= own_penalties(build_objective(trained.config, trained.denoiser))
    watched = build_watched(trained.config.watch, trained.shape, decoded=latents)
    penalties |= watched
    result |= {"watched": list(watched)}
    result |= {"penalties": mean_penalties(drawn, penalties), "penalties_real": mean_penalties(of_real, penalties)}
    found = asdict(level_errors(trained.denoiser, real.measured, images, shares=shares).summary())
    return result | {"denoising": found | {"images_are": real.measured.kind}}


def _quality(seen_in: Features | None, samples: Tensor, real: Tensor, shares: Shares) -> dict[str, Any]:
    """Distances, and digits where the network reads some."""
    if seen_in is None:
        return {"fid": None, "kid": None, "kid_sd": None, "precision": None, "recall": None, "features": None}
    found = seen_in.compare(seen_in.of(samples, shares), seen_in.of(real, shares))
    if found.reading is None or found.reading_real is None:
        return asdict(found.distance)
    confident = {"confident": found.reading.confident, "confident_real": found.reading_real.confident}
    return {**asdict(found.distance), **confident, "digits": found.reading.digits}


def _of_fields(samples: Tensor, real: Tensor) -> dict[str, Any]:
    """Spectra and histograms beside those of real ones; and what two halves of these differ by, which is chance."""
    found, half = field_distance(samples, real), len(real) // 2
    values = {"spectrum_db": found.spectrum_db, "histogram_sd": found.histogram_sd, "power_ratio": found.ratio}
    if half < 2:
        return values
    chance = field_distance(real[:half], real[half:])
    return values | {"spectrum_db_by_chance": chance.spectrum_db, "histogram_sd_by_chance": chance.histogram_sd}


def _generated(trained: TrainedRun, n: int, seed: int, cond: Condition | None, shares: Shares, compile: bool) -> Tensor:
    """Samples as the run's config says, uint8 images or floats."""
    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=n)

        def progress(done: int) -> None:
            bar.update(task, completed=done)

        drawn, _ = sampling.generate(
            trained.denoiser, trained.shape, n, seed=seed, cond=cond, compile=compile, progress=progress, shares=shares
        )
        return drawn


def _read(samples: str, trained: TrainedRun) -> Tensor:
    """Samples from a file or a folder, of the size and the channels of the run's: uint8 images, or fields in the user's units.

    Raises:
        UsageError: they are of another size, or there is one only.
    """
    if not Path(samples).exists():
        raise UsageError(f"--samples {samples} does not exist")
    shape, folder = _pictures(trained), Path(samples).is_dir()
    if not shape.is_eight_bit:
        return _read_fields(samples, shape)
    height, width = shape.sample[1:]
    array = Path(samples).suffix.lower() in (".npy", ".npz")  # of whatever size it is
    images = load_array(Path(samples)) if array else load_data(samples, (height, width) if folder else None)
    size = tuple(images.pixels.shape[2:])
    if images.found.resized or size != (height, width):
        has = (
            f"{counted(images.found.resized, 'image')} of another size"
            if folder
            else f"images of another size, {size[1]}x{size[0]}"
        )
        raise UsageError(f"--samples {samples} holds {has}: the run makes {said((height, width))}")
    if len(images) < 2:
        raise UsageError(f"--samples {samples} holds one image, which says nothing of a spread: give at least two")
    pixels = in_channels(replace(images, name=f"--samples {samples}"), shape.channels).pixels[:]
    notes(notices(images))
    return pixels


def _read_fields(samples: str, shape: DataShape) -> Tensor:
    """Samples (N, ...) of a .npy, or of the array "samples" of an .npz, as `xhat sample` writes them."""
    is_npz = samples.endswith(".npz")
    found = values_of(samples, array="samples" if is_npz else None).stack
    if found.shape[1:] != shape.sample:
        raise UsageError(f"--samples {samples} holds samples {found.shape[1:]}, the run makes {shape.sample}")
    if len(found) < 2:
        raise UsageError(f"--samples {samples} holds one sample, which says nothing of a spread: give at least two")
    return found[:].to(torch.promote_types(found.dtype, torch.float32))


def _pictures(trained: TrainedRun) -> DataShape:
    """The shape of what is shown of a run: of a pipeline's that of the pictures that it decodes."""
    folder, home = folder_of(trained.config.network), home_of(trained.denoiser.net)
    if folder is None or home is None:
        return trained.shape
    return DataShape.of((picture_of(folder)[0], *home.pixels_of_latents(trained.shape.sample[1:])))


def _show(result: dict[str, Any]) -> None:
    out = console()
    table = new_table(text_column(), number_column(""), text_column())
    what = result["of"]
    kind = f"held-out {what}" if result["reference_is"] == "held out" else f"training {what}"
    if "histogram_sd" in result:
        for key, name, unit in (("spectrum_db", "spectra", "dB"), ("histogram_sd", "histograms", "SD")):
            chance = result.get(f"{key}_by_chance")
            told = f"{result['samples']} samples against {result['reference']} {kind}, mean difference"
            if result[key] is not None:
                between = "" if chance is None else f"; two halves of these: {chance:.3f}"
                table.add_row(f"{name}, {unit}", f"{result[key]:.3f}", told + between)
    elif result["fid"] is None:
        table.add_row("FID, KID", "", f"no feature network for these {what}: register one, and name it with --features")
    else:
        out.print(f"features: {result['features']}", soft_wrap=True)
        against = f"{result['samples']} samples against {result['reference']} {kind}"
        table.add_row("FID", f"{result['fid']:.2f}", against)
        table.add_row("KID", f"{result['kid']:.4f}", f"± {result['kid_sd']:.4f}, standard deviation over subsets")
    if result.get("recall") is not None:
        table.add_row("precision", f"{result['precision']:.3f}", "share of samples that are near a real image, in features")
        table.add_row("recall", f"{result['recall']:.3f}", "share of real images that are near a sample")
    if "digits" in result:
        real = f"real images: {result['confident_real']:.1%}"
        table.add_row("read as a digit", f"{result['confident']:.1%}", f"with confidence >= 0.9; {real}")
        table.add_row("read as 0 to 9", "", " ".join(map(str, result["digits"])))
    if result["decoded"]:
        out.print("real images are as the pipeline's autoencoder makes them of their latents: what it loses does not count")
    for name, value in result["penalties"].items():
        told = "; not trained on" if name in result["watched"] else ""
        table.add_row(name, f"{value:.4f}", f"real {what}: {result['penalties_real'][name]:.4f}{told}")
    show_table(out, table)
    rows = result["denoising"]
    values = ("latents", "value") if result["decoded"] else (what, "normalised value" if "histogram_sd" in result else "pixel")
    of = f"held-out {values[0]}" if rows["images_are"] == "held out" else f"training {values[0]}"
    out.print(f"\ndenoising error: mean (x0 - x0_hat)² per {values[1]}, {rows['images']} {of}")
    headers = ("logsnr", "error\nof x0", "±\nstandard\nerror", "bits/dim\nper unit\nlogsnr")
    errors = new_table(*map(number_column, headers))
    for row in zip(rows["logsnr"], rows["x0_error"], rows["x0_error_se"], rows["density"], strict=True):
        errors.add_row(f"{row[0]:6.2f}", f"{row[1]:.5f}", f"{row[2]:.1g}", f"{row[3]:.4f}")
    show_table(out, errors)
    ends = f"logsnr {rows['logsnr'][0]:g} to {rows['logsnr'][-1]:g}"
    low, high = limits(rows["bits_per_dim"], rows["bits_per_dim_se"], rows["images"])
    out.print(f"together, {ends}: {rows['bits_per_dim']:.4f} ± {rows['bits_per_dim_se']:.4f} bits/dim")
    out.print(f"± standard error; 95 %: {low:.4f} to {high:.4f}")
