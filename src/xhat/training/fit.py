"""Training of objects: any objective on any data, with all that a run has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xhat.config.changes import overlaid
from xhat.config.options import MAY_CHANGE, Options
from xhat.config.parsing import options_of
from xhat.data.shape import DataShape
from xhat.data.source import name_of
from xhat.data.summary import notes_of, summary_of_source
from xhat.data.wrap import as_source
from xhat.diffusion.denoiser import Denoiser
from xhat.distributed import main_process
from xhat.errors import RunError
from xhat.files.atomic import sweep
from xhat.objective.objective import Objective
from xhat.runs.before import objects_in
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint, set_aside
from xhat.runs.environment import write_environment
from xhat.runs.lock import reserved
from xhat.runs.metrics import read_metrics
from xhat.runs.objects import Objects, differences_of, read_objects, write_objects
from xhat.runs.places import CONFIG_FILE, require_new
from xhat.training.callbacks import Callback, require_callbacks
from xhat.training.display import Display, standard
from xhat.training.learning_rate import rate_jump
from xhat.training.setup import Setup, set_up
from xhat.training.stop import heard_from_here_on
from xhat.training.train import train


@dataclass(frozen=True)
class Fitted:
    """What a training left.

    Attributes:
        denoiser: with the averaged weights, in evaluation mode, ready to sample.
        shape: of the data.
        step: steps done.
        finished: whether the budget is spent; False where somebody asked to stop.
        numbers: the last row of metrics.jsonl.
        run: the folder.
    """

    denoiser: Denoiser
    shape: DataShape
    step: int
    finished: bool
    numbers: Mapping[str, Any]
    run: Path


def fit(
    objective: Objective,
    data: Any,
    run: str | Path,
    *,
    held_out: Any = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    options: Options | None = None,
    display: Display | None = None,
    **changes: Any,
) -> Fitted:
    """Train an objective on data, into a run folder: what `xhat train` does with a config, with objects of any kind.

    Exact resume after a crash, averaged weights, metrics, held-out error, pictures where the data are pictures, several
    processes (torchrun, accelerate launch), bf16 and compilation are those of `xhat train`, which calls the same loop. The
    weights are trained in place: initial ones are those that the objective has.

    Args:
        objective: any; its seed is that of times, noise and dropout.
        data: a data source, or what `xhat.data` makes one of: a tensor, a Dataset, an iterable of batches.
        run: folder for checkpoints, weights, metrics and pictures.
        held_out: data to measure on while training; by default those that the source itself holds out.
        resume: go on from the newest checkpoint of the run, if there is one.
        callbacks: told of the moments of the training.
        options: how; see `Options`.
        display: what shows the progress; by default a bar on a terminal, else a line now and then.
        changes: options by name, laid over `options`: max_steps=1000, batch_size=64, optimizer={"lr": 1e-3}.

    Raises:
        RunError: the folder holds a run and `resume` is not set, or one of other objects; no budget; a term that cannot be
            computed; a step that is not finite.
        ConfigError: an option that does not exist or does not fit.
        DataError: data that give no batches.
    """
    if not isinstance(objective, Objective):
        got = type(objective).__name__
        raise RunError(f'fit trains an xhat.Objective, got {got}: Objective(denoiser, {{"denoise": Term(Denoising())}})')
    if not str(run or "").strip():
        raise RunError("run is empty: name a folder")
    require_callbacks(callbacks or ())
    how = options_of(overlaid(asdict(options) if isinstance(options, Options) else dict(options or {}), changes))
    source = as_source(data)
    measured = getattr(source, "held_out", None) if held_out is None else as_source(held_out, held_out=0.0)
    folder, own = Path(run), Objects(how, objective.described())  # as it is before a checkpoint's values are in it
    _require_new_or_resumed(folder, resume=resume)  # before it is reserved: who will be refused keeps nobody else out
    with reserved(folder, "training in", "run"):
        checkpoint, before, damaged = _where(folder, own, resume=resume)
        setup = set_up(objective, source, how, held_out=measured, checkpoint=checkpoint, about={"objects": own.values()})
        setup.accelerator.wait_for_everyone()  # all have seen that there was no run before there is one
        with heard_from_here_on():
            shown = display or standard()
            if main_process():
                write_objects(folder, own, setup.shape)  # the first file of a run: without it, nobody takes the others for one
                write_environment(folder)
                if resume and before is None:
                    shown.say(f"{folder} holds no run yet: starting from step 0")
                for line in set_aside(damaged):
                    shown.say(line)
                for line in (*notes_of(source), summary_of_source(name_of(source), source, measured, setup.shape)):
                    shown.say(line)
                if before and (jump := rate_jump(before, how, setup.state.step, setup.state.seconds)):
                    shown.say(jump)
            asked = train(setup, folder, shown, callbacks or ())
        return _fitted(setup, folder, finished=not asked)


def _where(folder: Path, own: Objects, *, resume: bool) -> tuple[Checkpoint | None, Options | None, list[Path]]:
    """The checkpoint to go on from, the options so far, nothing for a new run, and newer checkpoints, which are damaged.

    Raises:
        RunError: there is a run, and it is not to go on, or not as this one.
    """
    _require_new_or_resumed(folder, resume=resume)
    if not resume:
        return None, None, []
    checkpoint, damaged = newest_checkpoint(folder)
    before = read_objects(folder) or (None if checkpoint is None else objects_in(checkpoint))
    if before is None:
        require_new(folder, "resume=True")
        return None, None, []
    if changed := differences_of(before, own, MAY_CHANGE):
        what = "; ".join(changed[:3])
        raise RunError(f"{folder} holds a run of other objects or options ({what}): name another, or go on with its own")
    sweep(folder)
    return checkpoint, before.options, damaged


def _require_new_or_resumed(folder: Path, *, resume: bool) -> None:
    if (folder / CONFIG_FILE).exists():
        raise RunError(f"{folder} holds a run of xhat train: choose another folder, or resume it with xhat train --resume")
    if not resume:
        require_new(folder, "resume=True")


def _fitted(setup: Setup, folder: Path, *, finished: bool) -> Fitted:
    rows = read_metrics(folder)
    denoiser = setup.state.averaged().eval()
    return Fitted(denoiser, setup.shape, setup.state.step, finished, rows[-1] if rows else {}, folder)
