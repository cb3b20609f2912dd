"""What xhat sample does."""

import difflib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xhat.commands.actions.measured import read_measured
from xhat.commands.actions.no_effect import UNTAUGHT, UNTOLD
from xhat.commands.actions.prompts import asked_for
from xhat.commands.terminal import note_once, progress_bar
from xhat.config.build import build_sampling, build_steering
from xhat.config.syntax import names_in
from xhat.data.shape import DataShape
from xhat.distributed import main_process, shared_out
from xhat.errors import ConfigError, UsageError
from xhat.evaluation.pictures import grid_columns, is_shown, save_grid, shown
from xhat.files.atomic import write_bytes
from xhat.files.ours import require_free
from xhat.runs.load import TrainedRun, load
from xhat.sampling.generate import Sampling
from xhat.sampling.steering import guided_by

SHOWN = 100
NAMED = 10


def act(options: Any) -> int:
    """Write samples of a trained run, and a picture of the first of them."""
    out, force = Path(options.out), options.force
    picture = out.with_suffix(".png")
    changes = {key: options[key] for key in ("sampler", "steps", "guidance") if options[key] is not None}
    shares = shared_out()
    trained = load(options.run)
    if out.suffix == ".npy" and (trained.shape.is_eight_bit or trained.denoiser.decode is not None):
        raise UsageError(f"--out {out}: images go into an .npz, {out.with_suffix('.npz')}, with what they were told")
    number = None if options.label is None else class_number(options.label, trained.shape)
    n, told, prompts = asked_for(trained, options.prompt, options.prompts, options.n)
    if changes.get("guidance", 1) != 1 and trained.denoiser.decode is None:
        if trained.shape.classes is None:
            note_once(f"--guidance {changes['guidance']:g} has no effect: {UNTOLD}")
        elif trained.config.label_dropout == 0:
            note_once(f"--guidance {changes['guidance']:g} means little: {UNTAUGHT}")
    how = replace(trained.config.sampling, **changes)
    try:
        sampling = build_sampling(how, trained.denoiser.schedule)
    except ValueError as error:
        raise UsageError(str(error)) from None
    unlabelled = options.measured is not None and trained.shape.classes is not None and number is None
    if unlabelled:
        sampling = replace(sampling, guidance=_unlabelled(trained, options.guidance))
    if options.guide is not None:
        sampling = _guided(sampling, options.guide, options.measured, trained.shape)
    with progress_bar() as bar:
        task = bar.add_task("sampling", total=n)
        images, labels = sampling.generate(
            trained.denoiser,
            trained.shape,
            n,
            seed=options.seed,
            label=number,
            cond=told,
            compile=options.compile,
            progress=lambda done: bar.update(task, completed=done),
            shares=shares,
        )
    shape, latents = trained.shape, trained.denoiser.decode is not None
    images = shown(images, shape, trained.denoiser, shares) if latents else images
    labels = None if unlabelled else labels
    if not main_process():
        return 0
    eight_bit, pictures = latents or shape.is_eight_bit, is_shown(shape, trained.denoiser)
    arrays: dict[str, Any] = {"images": images.permute(0, 2, 3, 1).numpy()} if eight_bit else {"samples": images.numpy()}
    if prompts:
        arrays["prompts"] = np.array(prompts)
    else:
        arrays |= {f"cond_{name}": value.cpu().numpy() for name, value in (told or {}).items()}
    if labels is not None:
        arrays |= _labels_of(labels.numpy(), trained.shape)
    buffer = io.BytesIO()
    if out.suffix == ".npy":
        np.save(buffer, arrays["samples"])
    else:
        np.savez_compressed(buffer, **arrays)
    if pictures:  # first: with the array in its place, all is there
        columns = grid_columns(shape.classes if number is None else None)
        first = images[:SHOWN] if latents else shown(images[:SHOWN], shape, trained.denoiser)
        save_grid(first, picture, min(columns, n) if latents else columns, force=force)
    try:
        write_bytes(out, buffer.getvalue(), replace=force)
    except FileExistsError:
        require_free(out)
        raise
    if not pictures:
        print(f"{n} samples {shape.sample} in {out}")
        return 0
    what = "images" if eight_bit else "samples"
    print(f"{n} {what} in {out}, {'all' if n <= SHOWN else f'the first {SHOWN}'} of them to look at in {picture}")
    return 0


def _guided(sampling: Sampling, guide: str, measured: str | None, shape: DataShape) -> Sampling:
    """Sampling steered by --guide.

    Raises:
        UsageError: the expression is no penalty and no steering, or does not use what was measured.
    """
    if measured is not None and "measured" not in names_in(guide):
        raise UsageError(f"--measured {measured}: --guide does not use it: write for example linear(blur(2), measured)")
    values = None if measured is None else read_measured(measured, shape)
    try:
        return replace(sampling, sampler=guided_by(build_steering(guide, values), sampler=sampling.sampler))
    except (ConfigError, ValueError) as error:
        raise UsageError(f"--guide: {error}") from None


def _unlabelled(trained: TrainedRun, guidance: float | None) -> float:
    """The scale at which a model of classes is told none: what is measured says what is in an image.

    Raises:
        UsageError: it never learned to go without, or a guidance is asked for.
    """
    if guidance is not None:
        raise UsageError(f"--guidance {guidance:g} --measured: guided towards which class? name it, --label")
    if trained.config.label_dropout == 0:
        raise UsageError("--measured: this run was never trained without a label (label_dropout 0): name the class, --label")
    return 0.0


def class_number(label: str, shape: DataShape) -> int:
    """The class that a user calls `label`: by its name in the data, or by its number where that is nobody's name.

    Raises:
        UsageError: there is none.
    """
    if shape.classes is None:
        raise UsageError(f"--label {label}: the run was trained without labels, it has no classes: leave --label out")
    names = shape.class_names
    if label in names:
        return names.index(label)
    if label.isdecimal() and not all(name.isdecimal() for name in names) and int(label) < len(names):
        return int(label)
    known = ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])}, ... {names[-1]}"
    close = difflib.get_close_matches(label, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"they are {known}"
    raise UsageError(f"--label {label}: not one of the {len(names)} classes that the run knows: {hint}")


def _labels_of(labels: np.ndarray, shape: DataShape) -> dict[str, np.ndarray]:
    """Labels as the data have them: numbers, or positions in the names of the classes."""
    names = shape.class_names
    if all(name.isdecimal() for name in names):
        return {"labels": np.array([int(name) for name in names])[labels]}
    return {"labels": labels, "classes": np.array(names)}
