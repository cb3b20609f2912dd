"""xhat evaluate."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from xhat.commands.parsing import UsageError, new_parser
from xhat.data.images import Images
from xhat.runs import TrainedRun

DESCRIPTION = """Measure a trained run: FID and KID of samples against real images, digits read with confidence,
penalties of the samples, and the denoising error of x0 at each noise level, on held-out images where there are some.

FID and KID are computed in the features of a small MNIST network for 28x28 grey images; name any other network with
--features package.module:factory. With --json, stdout holds one JSON object and nothing else.

--bound measures the variational bound instead, and --ode the likelihood of the probability-flow ODE, in bits/dim on random
held-out images. An interrupted --bound goes on where it stopped when it is called again."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = new_parser("evaluate", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    reference = "images to compare with (default: MNIST's test set; for other runs their own training data)"
    parser.add_argument("--data", type=str | None, default=None, help=reference)
    parser.add_argument("--n", type=int | None, default=None, help="number of samples, or of images (1000; with --ode 64)")
    parser.add_argument("--bound", action="store_true", help="the variational bound, bits/dim")
    parser.add_argument("--ode", action="store_true", help="the likelihood of the probability-flow ODE, bits/dim")
    parser.add_argument("--precision", type=float, default=0.0, metavar="BITS", help="stop --bound at this standard error")
    parser.add_argument("--exact", action="store_true", help="sum all steps of the --bound: slow")
    steps = "T of the --bound on a continuous schedule (1000); inf is continuous time"
    parser.add_argument("--steps", type=str | None, default=None, metavar="T", help=steps)
    parser.add_argument("--samples", type=str | None, default=None, metavar="FILE.npz", help="use these instead of drawing")
    parser.add_argument("--features", type=str | None, default=None, metavar="MODULE:FACTORY", help="network for FID and KID")
    parser.add_argument("--images", type=int, default=1000, help="held-out images for the denoising error")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.read(argv)
    n = options.n if options.n is not None else 64 if options.ode else 1000
    if min(n, options.images) < 2:
        raise UsageError("--n and --images must be at least 2")
    if options.bound or options.ode:
        return _likelihood(options, n)
    if options.exact or options.precision or options.steps is not None:
        raise UsageError("--exact, --precision and --steps belong to --bound: add it")
    result = _evaluate(options.run, options.data, n, options.samples, options.features, options.images, options.seed)
    if options.json:
        print(json.dumps(result))
    else:
        _show(result)
    return 0


def _likelihood(options: Any, n: int) -> int:
    from xhat.commands.likelihood import evaluate_bound, evaluate_ode, show_bound, show_ode

    if options.bound and options.ode:
        raise UsageError("--bound and --ode are two measurements: name one")
    if not options.precision >= 0:
        raise UsageError(f"--precision must be a standard error in bits/dim, such as 0.005, got {options.precision}")
    if options.ode:
        result, show = evaluate_ode(options.run, options.data, n, options.seed), show_ode
    else:
        how = {"precision": options.precision, "exact": options.exact, "steps": _steps(options.steps), "seed": options.seed}
        result, show = evaluate_bound(options.run, options.data, n, **how), show_bound
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


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
    from xhat.config import build_objective
    from xhat.data.images import to_float
    from xhat.data.load import load as load_data
    from xhat.evaluation.denoising import denoising_error
    from xhat.evaluation.features import MNISTFeatures
    from xhat.evaluation.quality import distance, features_of, penalties, read_digits
    from xhat.losses.image import ImageLoss
    from xhat.runs import load

    trained = load(run_)
    real = load_data(data or trained.config.data, trained.shape.size, "test")
    if real.pixels.shape[1] != trained.shape.channels:
        raise UsageError(f"{real.name} has {real.pixels.shape[1]} channels, the run was trained on {trained.shape.channels}")
    digits = (trained.shape.channels, trained.shape.size) == (1, 28)
    network = _network(features, digits)
    drawn = _draw(trained, n, seed) if samples is None else _read(samples, trained)
    held_out_data = data is not None or trained.config.data == "mnist"
    result: dict[str, Any] = {"run": run_, "step": trained.step, "samples": len(drawn), "reference": len(real)}
    result["reference_is"] = "held out" if held_out_data else "training images"
    if network is None:
        result |= {"fid": None, "kid": None, "kid_sd": None, "features": None}
    else:
        features_drawn, features_real = features_of(network, drawn), features_of(network, real.pixels)
        result |= asdict(distance(features_drawn, features_real, features or "mnist"))
    if isinstance(network, MNISTFeatures):
        reading, of_real = read_digits(network.read(features_drawn)), read_digits(network.read(features_real))
        result |= {"confident": reading.confident, "confident_real": of_real.confident, "digits": reading.digits}
    objective = build_objective(trained.config, trained.denoiser)
    own = {name: term.loss.penalty for name, term in objective.terms.items() if isinstance(term.loss, ImageLoss)}
    result |= {"penalties": penalties(drawn, own), "penalties_real": penalties(real.pixels, own)}
    device = next(trained.denoiser.net.parameters()).device
    held_out, labels = to_float(real.pixels[:images]).to(device), _labels(real, trained, images)
    labels = None if labels is None else labels.to(device)
    return result | {"denoising": asdict(denoising_error(trained.denoiser, held_out, labels))}


def _network(features: str | None, digits: bool) -> nn.Module | None:
    from xhat.evaluation.features import MNISTFeatures
    from xhat.evaluation.quality import feature_network

    if features is None:
        return MNISTFeatures.trained() if digits else None
    try:
        return feature_network(features)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _draw(trained: TrainedRun, n: int, seed: int) -> Tensor:
    from xhat.generate import draw

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sampling", total=n)
        images, _ = draw(
            trained.denoiser,
            trained.config.sampling,
            trained.shape,
            n,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    return images


def _read(samples: str, trained: TrainedRun) -> Tensor:
    from xhat.data.load import load as load_data

    if not Path(samples).is_file():
        raise UsageError(f"--samples {samples} does not exist")
    pixels = load_data(samples).pixels
    expected = (trained.shape.channels, trained.shape.size, trained.shape.size)
    if pixels.shape[1:] != expected:
        raise UsageError(f"--samples {samples} holds images {tuple(pixels.shape[1:])}, the run makes {expected}")
    return pixels


def _labels(real: Images, trained: TrainedRun, images: int) -> Tensor | None:
    if trained.shape.classes is None:
        return None
    if real.labels is None:
        return torch.full((min(images, len(real)),), trained.shape.classes)
    return real.labels[:images]


def _show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    kind = "held-out images" if result["reference_is"] == "held out" else "training images"
    if result["fid"] is None:
        table.add_row("FID, KID", "no feature network for these images: name one with --features module:factory")
    else:
        console.print(f"features: {result['features']}", soft_wrap=True)
        against = f"{result['samples']} samples against {result['reference']} {kind}"
        table.add_row("FID", f"{result['fid']:.2f}", against)
        table.add_row("KID", f"{result['kid']:.4f}", f"± {result['kid_sd']:.4f}, standard deviation over subsets")
    if "digits" in result:
        real = f"real images: {result['confident_real']:.1%}"
        table.add_row("read as a digit", f"{result['confident']:.1%}", f"with confidence >= 0.9; {real}")
        table.add_row("read as 0 to 9", "", " ".join(map(str, result["digits"])))
    for name, value in result["penalties"].items():
        table.add_row(name, f"{value:.4f}", f"real images: {result['penalties_real'][name]:.4f}")
    console.print(table)
    rows = result["denoising"]
    console.print(f"\ndenoising error: mean (x0 - x0_hat)² per pixel, {rows['images']} {kind}")
    errors = Table("logsnr", "error of x0", "± standard error", box=None, pad_edge=False)
    for logsnr, error, se in zip(rows["logsnr"], rows["x0_error"], rows["x0_error_se"], strict=True):
        errors.add_row(f"{logsnr:6.2f}", f"{error:.5f}", f"{se:.1g}")
    console.print(errors)
