"""The likelihood part of xhat evaluate: the variational bound and the ODE, as JSON values and on the terminal."""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from xhat import counted
from xhat.bound.control import Control
from xhat.bound.density import Pilot
from xhat.bound.estimate import BoundEstimate, Progress, estimate_bound
from xhat.bound.ode import ode_likelihood
from xhat.commands.parsing import UsageError
from xhat.data.images import Images, to_float
from xhat.data.load import load as load_data
from xhat.runs import TrainedRun, load
from xhat.training.checkpoint import read_tensors, write_bytes

PILOT_IMAGES = 512
EVALUATIONS = 8
SAVE_SECONDS = 10.0


def evaluate_bound(
    run: str, data: str | None, n: int, *, precision: float, exact: bool, steps: float | None, seed: int
) -> dict[str, Any]:
    """Measure the bound of a run on n random held-out images; resumes if it was interrupted; writes bound.png into the run."""
    trained = load(run)
    x0, labels, pilot, pilot_labels, held_out = _images(trained, data, n, seed)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    settings = [trained.step, data or trained.config.data, len(x0), exact, steps, seed, _weights_hash(trained)]
    kept = folder / "bound.progress.safetensors"
    progress = _read_progress(kept, settings)
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task, saved = bar.add_task("bound", total=len(x0), completed=len(progress.terms)), time.monotonic()

        def report(now: Progress, se: float) -> None:
            nonlocal saved
            bar.update(task, completed=len(now.terms))
            if time.monotonic() - saved > SAVE_SECONDS:
                _write_progress(kept, now, settings)
                saved = time.monotonic()

        try:
            found = estimate_bound(
                trained.denoiser,
                x0,
                pilot,
                evaluations=None if exact else EVALUATIONS,
                precision=precision,
                steps=steps,
                cond=None if labels is None else {"label": labels},
                pilot_cond=None if pilot_labels is None else {"label": pilot_labels},
                seed=seed,
                progress=progress,
                report=report,
            )
        except ValueError as error:
            raise UsageError(f"the bound: {error}") from None
        except KeyboardInterrupt:
            if len(progress.terms):
                _write_progress(kept, progress, settings)
            raise
    _draw(found, folder / "bound.png")
    kept.unlink(missing_ok=True)
    return _as_json(found) | {
        "run": run,
        "step": trained.step,
        "reference_is": "held out" if held_out else "training images",
        "conditional": trained.shape.classes is not None,
        "picture": str(folder / "bound.png"),
    }


def evaluate_ode(run: str, data: str | None, n: int, seed: int) -> dict[str, Any]:
    """The ODE likelihood of n random held-out images: Hutchinson's trace with one probe, truncated-normal dequantization."""
    trained = load(run)
    x0, labels, _, _, held_out = _images(trained, data, n, seed)
    values, calls = [], []
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ode", total=len(x0))
        for first in range(0, len(x0), 64):
            own = slice(first, first + 64)
            cond = None if labels is None else {"label": labels[own]}
            try:
                found = ode_likelihood(trained.denoiser, x0[own], cond=cond, seed=hash_of(seed, first))
            except ValueError as error:
                raise UsageError(f"the ODE likelihood: {error}") from None
            values.append(found.bits_per_dim.cpu())
            calls.append(found.network_evaluations * len(found.bits_per_dim))
            bar.update(task, advance=len(found.bits_per_dim))
    bits = torch.cat(values)
    return {
        "bits_per_dim": float(bits.mean()),
        "bits_per_dim_se": float(bits.std() / math.sqrt(len(bits))),
        "network_evaluations_per_image": sum(calls) / len(bits),
        "images": len(bits),
        "dequantization": "variational, truncated normal",
        "trace": "Hutchinson, 1 probe",
        "solver": "dopri5, rtol 1e-5, atol 1e-5",
        "run": run,
        "step": trained.step,
        "reference_is": "held out" if held_out else "training images",
        "conditional": trained.shape.classes is not None,
    }


def show_bound(result: dict[str, Any]) -> None:
    """Print what `evaluate_bound` found."""
    console = Console(highlight=False)
    kind = "held-out images" if result["reference_is"] == "held out" else "training images"
    given = ", given their labels" if result["conditional"] else ""
    total = f"{result['bits_per_dim']:.4f} ± {result['bits_per_dim_se']:.4f} bits/dim"
    console.print(f"variational bound: [bold]{total}[/bold] on {result['images']:,} {kind}{given}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, what in (("prior", "what is left of x0 at t = 1"), ("diffusion", ""), ("reconstruction", "the decoder")):
        table.add_row(f"  {name}", f"{result[name]:.4f}", what)
    console.print(table)
    of = f"T = {result['steps']:,}" if result["steps"] else "continuous time"
    pilot = result["pilot_network_evaluations"]
    console.print(
        f"{of}; {result['network_evaluations_per_image']:,} network evaluations per image"
        + (f", and {pilot:,} in all to find where" if pilot else "")
    )
    if result["bits_per_dim"] > 8:
        console.print("more than 8 bits: the raw bytes are shorter; most bits are at the low noise that this run did not learn")
    console.print(f"picture: {result['picture']}", soft_wrap=True)


def show_ode(result: dict[str, Any]) -> None:
    """Print what `evaluate_ode` found."""
    console = Console(highlight=False)
    kind = "held-out images" if result["reference_is"] == "held out" else "training images"
    given = ", given their labels" if result["conditional"] else ""
    total = f"{result['bits_per_dim']:.4f} ± {result['bits_per_dim_se']:.4f} bits/dim"
    console.print(f"ODE likelihood: [bold]{total}[/bold] on {result['images']:,} {kind}{given}")
    console.print(f"dequantization: {result['dequantization']}; trace: {result['trace']}; solver: {result['solver']}")
    console.print(f"{result['network_evaluations_per_image']:.0f} network evaluations per image")


def hash_of(*key: float | str) -> int:
    """A seed that is a function of several values."""
    return counted.generator(*key).initial_seed() % 2**31


def _images(
    trained: TrainedRun, data: str | None, n: int, seed: int
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, bool]:
    """n random images with labels, and other images with labels for the pilot; whether they were held out."""
    source = data or trained.config.data
    pool = load_data(source, trained.shape.size, "test")
    if pool.pixels.shape[1] != trained.shape.channels:
        raise UsageError(f"{pool.name} has {pool.pixels.shape[1]} channels, the run was trained on {trained.shape.channels}")
    order = torch.randperm(len(pool.pixels), generator=counted.generator(seed, "bound images"))
    if source == "mnist":
        other = load_data(source, trained.shape.size, "train")
        aside = torch.randperm(len(other.pixels), generator=counted.generator(seed, "pilot images"))[:PILOT_IMAGES]
    else:
        other, count = pool, min(PILOT_IMAGES, len(order) // 5)
        if count < 1 or len(order) - count < 2:
            raise UsageError(f"{pool.name} has {len(order)} images: the bound needs at least 7, some of them for the pilot")
        aside, order = order[:count], order[count:]
    own = order[:n]
    device = next(trained.denoiser.net.parameters()).device

    def labels(images: Images, index: Tensor) -> Tensor | None:
        if trained.shape.classes is None:
            return None
        if images.labels is None:
            return torch.full((len(index),), trained.shape.classes, device=device)
        chosen: Tensor = images.labels[index].to(device)
        return chosen

    x0, pilot = to_float(pool.pixels[own]).to(device), to_float(other.pixels[aside]).to(device)
    held_out = data is not None or trained.config.data == "mnist"
    return x0, labels(pool, own), pilot, labels(other, aside), held_out


def _as_json(found: BoundEstimate) -> dict[str, Any]:
    curve = found.curve
    return {
        "bits_per_dim": found.bits_per_dim,
        "bits_per_dim_se": found.bits_per_dim_se,
        "prior": found.prior,
        "diffusion": found.diffusion,
        "reconstruction": found.reconstruction,
        "network_evaluations_per_image": found.network_evaluations_per_image,
        "pilot_network_evaluations": found.pilot_evaluations,
        "images": found.images,
        "steps": found.steps,
        "curve": {key: getattr(curve, key) for key in ("first", "last", "logsnr", "logsnr_width", "bits_per_dim")},
    }


def _draw(found: BoundEstimate, path: Path) -> None:
    from xhat.pictures import save_bound

    save_bound(path, found.curve, f"{found.bits_per_dim:.3f} ± {found.bits_per_dim_se:.3f} bits/dim")


def _weights_hash(trained: TrainedRun) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for _, value in sorted(trained.denoiser.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_progress(path: Path, progress: Progress, settings: list[Any]) -> None:
    tensors = {"terms": progress.terms, "by_cell": progress.by_cell}
    evaluations = 0
    if progress.pilot is not None:
        control, evaluations = progress.pilot.control, progress.pilot.evaluations
        tensors |= {"probability": progress.pilot.probability, "constant": control.constant, "slope": control.slope}
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    metadata = {"settings": json.dumps(settings), "evaluations": str(evaluations)}
    write_bytes(path, save(tensors, metadata=metadata))


def _read_progress(path: Path, settings: list[Any]) -> Progress:
    """What an interrupted evaluation with the same settings left; nothing otherwise."""
    if not path.exists():
        return Progress()
    try:
        metadata, tensors = read_tensors(path)
        if metadata["settings"] != json.dumps(settings):
            return Progress()
        pilot = None
        if "probability" in tensors:
            control = Control(tensors["constant"], tensors["slope"])
            pilot = Pilot(tensors["probability"], control, int(metadata["evaluations"]))
        return Progress(pilot, tensors["terms"], tensors["by_cell"])
    except (SafetensorError, KeyError, ValueError):
        return Progress()
