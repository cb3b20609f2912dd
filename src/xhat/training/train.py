"""A run from its first step to its last: what is written, measured and shown, and when."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xhat.config.build import build_sampling
from xhat.config.changes import flat
from xhat.errors import RunError
from xhat.evaluation.pictures import drawn, grid_columns, save_grid, save_losses
from xhat.objective.multipliers import FromGradients
from xhat.rng import Shard
from xhat.runs.metrics import read_metrics
from xhat.runs.weights import WEIGHTS, read_weights, save_weights
from xhat.tensors import evaluating
from xhat.training.callbacks import Callback, Callbacks, Moment
from xhat.training.display import Display
from xhat.training.hardware import compile_network, keep_buffers, repays_compiling
from xhat.training.log import Log
from xhat.training.loop import Loop, Step
from xhat.training.not_finite import culprits
from xhat.training.setup import PICTURE_IMAGES, Setup
from xhat.training.stop import Stop

if TYPE_CHECKING:
    from xhat.training.trackers import Track

PICTURE_STEPS = 20


def train(setup: Setup, run: Path, display: Display, callbacks: Sequence[Callback] = ()) -> bool:
    """Train until the budget is spent, from wherever the state is: at its beginning, or where a checkpoint left it.

    Args:
        setup: what is trained; its state changes.
        run: folder for checkpoints, weights, metrics and pictures; it exists.
        display: shows how far training has come.
        callbacks: told of its moments, on the main process.

    Returns:
        Whether the budget is spent; False after Ctrl-C or a callback's stop, with the state saved.

    Raises:
        RunError: a loss or a gradient is not finite; the last good state is kept.
        Exception: of a callback, once the state is saved.
    """
    state, options = setup.state, setup.options
    trackers = _trackers(setup, run)
    log = Log(run, setup.accelerator, state.objective, options.log_every, state.step, options.batch_size, display)
    stop, first = Stop(), state.step
    told = Callbacks([*callbacks, *trackers] if setup.accelerator.is_main_process else (), stop)
    try:
        started = time.perf_counter() - state.seconds
        _announce(setup, log)
        _compile_where_it_pays(setup, log)
        loop = Loop(setup, stop, started)
        last = _train(loop, run, log, told)
        if setup.accelerator.is_main_process and state.step == first:
            _mend_weights(setup, run)
        elif setup.accelerator.is_main_process:
            save_losses(read_metrics(run), run / "losses.png")
        if last is not None:
            told.call("ended", replace(last, numbers={}, path=None))
    finally:
        log.close()
        stop.restore()
        for tracker in trackers:
            tracker.close()
    loop.end()
    told.finish()
    return loop.progress() >= 1


def _trackers(setup: Setup, run: Path) -> "list[Track]":
    """Those of the main process, started; a start that fails ends all of the processes.

    Raises:
        RunError: it does not start.
    """
    if setup.options.track is None:
        return []
    from xhat.training.trackers import TRACKERS

    found: list[Track] = []
    failure: RunError | None = None
    if setup.accelerator.is_main_process:
        choices = {} if setup.config is not None else setup.state.objective.described()
        try:
            found = [TRACKERS[setup.options.track](run, {**flat(asdict(setup.config or setup.options)), **choices})]
        except RunError as error:
            failure = error
    if setup.accelerator.num_processes > 1:
        failed = torch.tensor(float(failure is not None), device=setup.accelerator.device)
        torch.distributed.all_reduce(failed)
        if failure is None and bool(failed):
            failure = RunError(f"track {setup.options.track}: it does not start on the main process")
    if failure is not None:
        raise failure
    return found


def _train(loop: Loop, run: Path, log: Log, told: Callbacks) -> Moment | None:
    """Step after step; checkpoints and pictures every so many of them, and at the end. The last moment, if there was one."""
    setup, state, options, ended, at = loop.setup, loop.state, loop.setup.options, False, None
    while not ended and loop.progress() < 1:
        step = loop.gradients()
        if not step.finite:
            raise RunError(_blame(setup, run, step))
        loop.update()
        measured = _measured(setup, loop.progress() >= 1)
        row = log.step(state.step, step, loop.progress(), state.seconds, measured)
        at = _moment(loop, run, step)
        told.call("step", at)
        _tell(told, at, row, measured)
        asked = step.asked or (loop.alone and loop.stop.asked)
        ended = asked or loop.progress() >= 1
        if ended or state.step % options.checkpoint_every == 0:
            _save(setup, run)
            told.call("saved", replace(at, path=run / WEIGHTS))
        if not asked and (state.step % options.sample_every == 0 or ended) and (picture := _picture(setup, run)):
            told.call("pictured", replace(at, path=picture))
    return at


def _moment(loop: Loop, run: Path, step: Step) -> Moment:
    state = loop.state
    losses = {name: value.detach() for name, value in step.losses.items()}
    return Moment(run, state.step, loop.progress(), state.seconds, losses, state.objective, state.averaged(), loop.stop)


def _tell(told: Callbacks, at: Moment, row: Mapping[str, Any] | None, measured: Mapping[str, float]) -> None:
    if row is not None:
        told.call("logged", replace(at, numbers=row))
    if measured:
        told.call("measured", replace(at, numbers=measured))


def _announce(setup: Setup, log: Log) -> None:
    if setup.resumed_from is not None:
        log.say(f"resuming from {setup.resumed_from}, step {setup.state.step}")
    objective = setup.state.objective
    trains_variance = any(term.loss.trains_variance for term in objective.terms.values())
    if objective.denoiser.variance.outputs > 1 and not trains_variance:
        log.say("variance: no term of this objective trains the learned variance; it stays halfway in log scale")


def _compile_where_it_pays(setup: Setup, log: Log) -> None:
    """As the options say; a network that cannot be compiled is trained without."""
    wanted, device, budget = setup.options.compile, setup.accelerator.device, setup.budget
    if not (wanted == "on" or (wanted == "auto" and repays_compiling(device, budget.steps, budget.seconds))):
        return
    log.say("compiling the network: about half a minute, the first time")
    if any(isinstance(m, FromGradients) for m in setup.state.objective.multipliers.values()):
        keep_buffers()
    batch = setup.feed.get(0, Shard(0, setup.options.batch_size), setup.rows)
    times = torch.full((setup.rows,), 0.5, device=device)
    failure = compile_network(setup.state.objective.denoiser.net, batch.x0, times, batch.cond or {}, setup.autocast)
    if failure:
        log.say(f"the network was not compiled, training continues without: {failure}")


def _blame(setup: Setup, run: Path, step: Step) -> str:
    """What to say of a step that is not finite. Checkpoints before it are good; without one, this state is the best."""
    if not list(run.glob("checkpoint-*")):
        _save(setup, run)
    return (
        f"{culprits(setup, step.losses)} is not finite at step {setup.state.step}: the last good state is kept in "
        f"{run}; lower optimizer.lr, or that term's weight"
    )


def _save(setup: Setup, run: Path) -> None:
    """Both artefacts: the whole training state, and the weights to sample from."""
    setup.accelerator.wait_for_everyone()
    if setup.accelerator.is_main_process:
        setup.state.save(run)
        _save_weights(setup, run)


def _save_weights(setup: Setup, run: Path) -> None:
    save_weights(run / WEIGHTS, setup.state.averaged(), setup.config, setup.shape, setup.state.step)


def _mend_weights(setup: Setup, run: Path) -> None:
    """Write the weights anew if they are missing, damaged, or name data that moved: nothing is left to train that would."""
    named = None if setup.config is None else setup.config.data
    try:
        found = read_weights(run)
        mend = found.data != named or found.step != setup.state.step
    except RunError:
        mend = True
    if mend:
        _save_weights(setup, run)


def _measured(setup: Setup, ended: bool) -> dict[str, float]:
    """The averaged weights on held-out images, when it is time; no rank but the first has to wait for it."""
    if setup.held_out is None or not setup.accelerator.is_main_process or not setup.held_out.due(setup.state.step, ended):
        return {}
    return setup.held_out.measure(setup.state.averaged())


def _picture(setup: Setup, run: Path) -> Path | None:
    """A grid of samples, drawn in few steps, where samples can be drawn."""
    if not setup.accelerator.is_main_process or not setup.shape.is_picture:
        return None
    columns = grid_columns(setup.shape.classes)
    how = replace(setup.options.sampling, steps=min(setup.options.sampling.steps, PICTURE_STEPS))
    model = setup.state.averaged()
    sampling = build_sampling(how, model.schedule)
    with evaluating(model):
        images, _ = sampling.generate(model, setup.shape, PICTURE_IMAGES // columns * columns, cond=setup.told)
    path = run / "samples" / f"step-{setup.state.step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    save_grid(drawn(images, setup.shape), path, columns)
    return path
