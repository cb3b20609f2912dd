"""xhat evaluate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xhat.bound.student import limits
from xhat.commands.parsing import new_parser
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, note, noted, print_json, progress_bar
from xhat.errors import UsageError
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import Paired, Penalty
from xhat.objective.objective import Objective
from xhat.runs.weights import TrainedRun

DESCRIPTION = """Measure a trained run: FID and KID of samples against real images, digits read with confidence,
penalties of the samples, and the denoising error of x0 at each noise level, on held-out images where there are some.

FID and KID are computed in the features of a small MNIST network for 28x28 grey images; name any other network with
--features package.module:factory. With --json, stdout holds one JSON object and nothing else.

--bound measures the variational bound instead, and --ode the likelihood of the probability-flow ODE, in bits/dim on random
held-out images. An interrupted --bound goes on where it stopped when it is called again."""
NUMBER = "number of samples, or of images (1000; with --precision all, with --ode 64)"


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = new_parser("evaluate", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    reference = "images to compare with (default: MNIST's test set; for other runs their own training data)"
    parser.add_argument("--data", type=str | None, default=None, help=reference)
    parser.add_argument("--n", type=int | None, default=None, help=NUMBER)
    parser.add_argument("--bound", action="store_true", help="the variational bound, bits/dim")
    parser.add_argument("--ode", action="store_true", help="the likelihood of the probability-flow ODE, bits/dim")
    precision = "as many images for the --bound as this standard error takes, at most all or --n"
    parser.add_argument("--precision", type=float | None, default=None, metavar="BITS", help=precision)
    parser.add_argument("--exact", action="store_true", help="sum all steps of the --bound: slow")
    steps = "T of the --bound on a continuous schedule (1000); inf is continuous time"
    parser.add_argument("--steps", type=str | None, default=None, metavar="T", help=steps)
    given = "an .npz or a folder of images: use these instead of drawing"
    parser.add_argument("--samples", type=str | None, default=None, metavar="PATH", help=given)
    parser.add_argument("--features", type=str | None, default=None, metavar="MODULE:FACTORY", help="network for FID and KID")
    parser.add_argument("--images", type=int | None, default=None, help="held-out images for the denoising error (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples; with --bound and --ode of images and draws")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.read(argv)
    _refuse_what_has_no_effect(options)
    result, show = _measure(options)
    if options.json:
        print_json(result)
    else:
        show(result)
    return 0


def _refuse_what_has_no_effect(options: Any) -> None:
    if options.bound and options.ode:
        raise UsageError("--bound and --ode are two measurements: name one")
    named = "--bound" if options.bound else "--ode" if options.ode else None
    for name in ("exact", "precision", "steps"):
        if getattr(options, name) not in (None, False) and named != "--bound":
            raise UsageError(f"--{name} belongs to --bound: " + ("leave it out with --ode" if options.ode else "add that"))
    for name in ("samples", "features", "images"):
        if getattr(options, name) is not None and named:
            raise UsageError(f"--{name} is for the measurement of samples, not for {named}: leave it out")
    if options.samples is not None:
        for name in ("n", "seed"):
            if getattr(options, name):
                note(f"--{name} {getattr(options, name)} has no effect: --samples are there already")
    if options.exact and options.precision is not None:
        raise UsageError("--exact takes every step of --n images, --precision chooses how many: name one")
    if any(count is not None and count < 2 for count in (options.n, options.images)):
        raise UsageError("--n and --images must be at least 2")
    if options.precision is not None and not 0 < options.precision < math.inf:
        raise UsageError(f"--precision must be a standard error in bits/dim, such as 0.005, got {options.precision}")


def _measure(options: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """The measurement that was asked for, and how to show it."""
    from xhat.commands.likelihood import evaluate_bound, evaluate_ode, show_bound, show_ode

    run_, data, n, seed = options.run, options.data, options.n, options.seed
    if options.ode:
        return evaluate_ode(run_, data, n or 64, seed), show_ode
    if options.bound:
        precision, steps = options.precision or 0.0, _steps(options.steps)
        most = n or (None if precision else 1000)
        return evaluate_bound(run_, data, most, precision=precision, exact=options.exact, steps=steps, seed=seed), show_bound
    return _evaluate(run_, data, n or 1000, options.samples, options.features, options.images or 1000, seed), _show


def _steps(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f'--steps must be a number of steps, or inf for continuous time, got "{text}"') from None


def _evaluate(
    run_: str, data: str | None, n: int, samples: str | None, features: str | None, images: int, seed: int
) -> dict[str, Any]:
    from xhat.commands.held_out import reference
    from xhat.config.build import build_objective
    from xhat.evaluation.denoising import denoising_error
    from xhat.evaluation.fid import distance, features_of, penalties, read_digits
    from xhat.networks.digits import MNISTFeatures
    from xhat.runs.weights import load

    trained = load(run_)
    real = reference(trained, data)
    # of own data without a test part a few images only were held out: too few for a distance of distributions
    whole = data is not None or real.images.found.part == "test"
    pixels = real.images.pixels if whole else reference(trained, data, "train").images.pixels
    digits = (trained.shape.channels, trained.shape.size) == (1, 28)
    network = _network(features, digits)
    drawn = _draw(trained, n, seed) if samples is None else _read(samples, trained)
    result: dict[str, Any] = {"run": run_, "step": trained.step, "samples": len(drawn), "reference": len(pixels)}
    result["reference_is"] = "held out" if whole else "training images"
    if network is None:
        result |= {"fid": None, "kid": None, "kid_sd": None, "features": None}
    else:
        features_drawn, features_real = features_of(network, drawn), features_of(network, pixels)
        result |= asdict(distance(features_drawn, features_real, features or "mnist"))
    if isinstance(network, MNISTFeatures):
        reading, of_real = read_digits(network.read(features_drawn)), read_digits(network.read(features_real))
        result |= {"confident": reading.confident, "confident_real": of_real.confident, "digits": reading.digits}
    own = _own_penalties(build_objective(trained.config, trained.denoiser))
    result |= {"penalties": penalties(drawn, own), "penalties_real": penalties(pixels, own)}
    device = next(trained.denoiser.net.parameters()).device
    held_out, labels = real.chosen(torch.arange(min(images, len(real))), device)
    found = asdict(denoising_error(trained.denoiser, held_out, labels))
    return result | {"denoising": found | {"images_are": "held out" if real.held_out else "training images"}}


def _own_penalties(objective: Objective) -> dict[str, Penalty]:
    """What the run's own image losses see in one image; those that compare it with its clean image have nothing to say."""
    own: dict[str, Penalty] = {}
    for name, term in objective.terms.items():
        if isinstance(term.loss, ImageLoss) and not isinstance(term.loss.penalty, Paired):
            penalty, decode = term.loss.penalty, term.loss.decode
            own[name] = penalty if decode is None else partial(_decoded, penalty, decode)
    return own


def _decoded(penalty: Penalty, decode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return penalty(decode(images))


def _network(features: str | None, digits: bool) -> nn.Module | None:
    from xhat.evaluation.fid import feature_network
    from xhat.networks.digits import MNISTFeatures

    if features is None:
        return MNISTFeatures.trained() if digits else None
    try:
        return feature_network(features)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _draw(trained: TrainedRun, n: int, seed: int) -> Tensor:
    from xhat.config.build import build_sampling

    with progress_bar() as bar:
        task = bar.add_task("sampling", total=n)
        sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
        images, _ = sampling.generate(
            trained.denoiser,
            trained.shape,
            n,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    return images


def _read(samples: str, trained: TrainedRun) -> Tensor:
    from xhat.commands.held_out import in_channels
    from xhat.data.load import load as load_data
    from xhat.data.wording import counted

    if not Path(samples).exists():
        raise UsageError(f"--samples {samples} does not exist")
    shape, folder = trained.shape, Path(samples).is_dir()
    images = load_data(samples, shape.size if folder else None)
    size = tuple(images.pixels.shape[2:])
    if images.found.resized or size != (shape.size, shape.size):
        has = (
            f"{counted(images.found.resized, 'image')} of another size"
            if folder
            else f"images of another size, {size[1]}x{size[0]}"
        )
        raise UsageError(f"--samples {samples} holds {has}: the run makes {shape.size}x{shape.size}")
    if len(images) < 2:
        raise UsageError(f"--samples {samples} holds one image, which says nothing of a spread: give at least two")
    pixels = in_channels(images.pixels, shape.channels, f"--samples {samples}")
    noted(images)
    return pixels


def _show(result: dict[str, Any]) -> None:
    out = console()
    table = new_table(text_column(), number_column(""), text_column())
    kind = "held-out images" if result["reference_is"] == "held out" else "training images"
    if result["fid"] is None:
        table.add_row("FID, KID", "", "no feature network for these images: name one with --features module:factory")
    else:
        out.print(f"features: {result['features']}", soft_wrap=True)
        against = f"{result['samples']} samples against {result['reference']} {kind}"
        table.add_row("FID", f"{result['fid']:.2f}", against)
        table.add_row("KID", f"{result['kid']:.4f}", f"± {result['kid_sd']:.4f}, standard deviation over subsets")
    if "digits" in result:
        real = f"real images: {result['confident_real']:.1%}"
        table.add_row("read as a digit", f"{result['confident']:.1%}", f"with confidence >= 0.9; {real}")
        table.add_row("read as 0 to 9", "", " ".join(map(str, result["digits"])))
    for name, value in result["penalties"].items():
        table.add_row(name, f"{value:.4f}", f"real images: {result['penalties_real'][name]:.4f}")
    show_table(out, table)
    rows = result["denoising"]
    of = "held-out images" if rows["images_are"] == "held out" else "training images"
    out.print(f"\ndenoising error: mean (x0 - x0_hat)² per pixel, {rows['images']} {of}")
    headers = ("logsnr", "error\nof x0", "±\nstandard\nerror", "bits/dim\nper unit\nlogsnr")
    errors = new_table(*map(number_column, headers))
    for row in zip(rows["logsnr"], rows["x0_error"], rows["x0_error_se"], rows["density"], strict=True):
        errors.add_row(f"{row[0]:6.2f}", f"{row[1]:.5f}", f"{row[2]:.1g}", f"{row[3]:.4f}")
    show_table(out, errors)
    ends = f"logsnr {rows['logsnr'][0]:g} to {rows['logsnr'][-1]:g}"
    low, high = limits(rows["bits_per_dim"], rows["bits_per_dim_se"], rows["images"])
    out.print(f"together, {ends}: {rows['bits_per_dim']:.4f} ± {rows['bits_per_dim_se']:.4f} bits/dim")
    out.print(f"± standard error; 95 %: {low:.4f} to {high:.4f}")
