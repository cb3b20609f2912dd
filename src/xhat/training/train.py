"""A run from its first step to its last: what is written, measured and shown, and when."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xhat.config.changes import flat
from xhat.diffusion.sharded import gathered
from xhat.distributed import from_main
from xhat.errors import DataError, RunError, SharedError
from xhat.objective.multipliers import FromGradients
from xhat.rng import Shard
from xhat.runs.places import WEIGHTS, checkpoints
from xhat.training.artefacts import complete, of_a_picture, picture_due, save_loss_curves, save_picture
from xhat.training.callbacks import Callback, Callbacks, Moment
from xhat.training.compiling import Trial, compile_network, keep_buffers, repays_compiling
from xhat.training.display import Display
from xhat.training.log import Log
from xhat.training.loop import Loop, Step
from xhat.training.not_finite import data_are_bad, found_not_finite
from xhat.training.saving import Saving, keep_averages, way_back
from xhat.training.setup import Setup
from xhat.training.stop import Stop
from xhat.training.watched import watched

if TYPE_CHECKING:
    from xhat.training.trackers import Track


def train(setup: Setup, run: Path, display: Display, callbacks: Sequence[Callback] = ()) -> int:
    """Train until the budget is spent, from wherever the state is: at its beginning, or where a checkpoint left it.

    Args:
        setup: what is trained; its state changes.
        run: folder for checkpoints, weights, metrics and pictures; it exists.
        display: shows how far training has come.
        callbacks: told of its moments, on the main process.

    Returns:
        0 once the budget is spent; else who asked to stop, see `Stop.asked`: the state is saved.

    Raises:
        SharedError: a loss, a gradient or the weights are not finite; the last good state is kept.
        RunError: there is not enough memory, or another process of the training has ended.
        Exception: of a callback, once the state is saved.
    """
    state, options = setup.state, setup.options
    trackers = _trackers(setup, run)
    objective, every, size = state.objective, options.log_every, options.batch_size
    before = None if setup.resumed is None else setup.resumed.log
    log = Log(run, setup.accelerator, objective, every, state.step, size, display, before)
    stop = Stop()
    told = Callbacks([*callbacks, *trackers] if setup.accelerator.is_main_process else (), stop)
    saving = Saving(setup, run, log)
    try:
        started = time.perf_counter() - state.seconds
        _announce(setup, log)
        if setup.budget.progress(state.step, state.seconds) < 1:
            _compile_where_it_pays(setup, log)
        loop = Loop(setup, stop, started)
        complete(setup, run, ended=loop.progress() >= 1)
        with setup.reading():
            asked, last = _train(loop, saving, log, told)
        _say_of_times(loop, log)
        if setup.accelerator.is_main_process:
            save_loss_curves(run)
        if last is not None:
            told.call("ended", replace(last, numbers={}, path=None))
    finally:
        saving.close()
        log.close()
        stop.restore()
        for tracker in trackers:
            tracker.close()
    loop.end()
    told.finish()
    return 0 if loop.progress() >= 1 else asked


def _trackers(setup: Setup, run: Path) -> "list[Track]":
    """Those of the main process, started; a start that fails ends all of the processes.

    Raises:
        SharedError: it does not start.
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
    if failed := from_main(None if failure is None else str(failure)):
        raise SharedError(failed) from failure
    return found


def _train(loop: Loop, saving: Saving, log: Log, told: Callbacks) -> tuple[int, Moment | None]:
    """Step after step; checkpoints and pictures every so many of them, and at the end. Who asked to stop; the last moment."""
    run = saving.run
    setup, state, options, asked, at = loop.setup, loop.state, loop.setup.options, 0, None
    while not asked and loop.progress() < 1:
        try:
            step = loop.gradients()
        except DataError:  # what one process has trained so far is kept; of several the others would wait for it
            if loop.alone and state.step and loop.settled():
                saving.begin()
            if loop.alone and loop.stop.asked:  # who asked to stop may have ended what reads ahead, too
                return loop.stop.asked, at
            raise
        if not step.finite:
            raise SharedError(_blame(saving))
        loop.update()
        ended = loop.progress() >= 1
        if (step.asked or ended or _writes(setup)) and not loop.settled():
            raise SharedError(_blame(saving))
        measured = _measured(setup, ended)
        row = log.step(state.step, step, loop.progress(), state.seconds, measured, setup.feed.lost)
        at = _moment(loop, run, step)
        told.call("step", at)
        _tell(told, at, row, measured)
        asked = step.asked or (loop.stop.asked if loop.alone else 0)
        if _keeps(setup, ended=ended):
            keep_averages(setup, run)
        due, last = state.step % options.checkpoint_every == 0, bool(asked) or ended
        _tell_of_saved(told, saving, wait=due or last)
        if due or last:
            if not loop.settled():  # somebody has asked to stop since
                raise SharedError(_blame(saving))
            saving.begin(replace(at, path=run / WEIGHTS))
            _tell_of_saved(told, saving, wait=last)
        if not asked and picture_due(setup, ended=ended) and (picture := save_picture(setup, run)):
            told.call("pictured", replace(at, path=picture))
    return asked, at


def _writes(setup: Setup) -> bool:
    """Whether something is read or written after this step: then all that is on its way to the host has to be there."""
    step, options = setup.state.step, setup.options
    often = any(step % n == 0 for n in (options.log_every, options.checkpoint_every))
    return often or _keeps(setup, ended=False) or of_a_picture(step, options.sample_every)


def _keeps(setup: Setup, *, ended: bool) -> bool:
    """Whether averages of the weights are kept after this step: every so many, and at the end."""
    every = setup.options.averages_every
    return every > 0 and (ended or setup.state.step % every == 0)


def _moment(loop: Loop, run: Path, step: Step) -> Moment:
    state = loop.state
    losses = {name: value.detach() for name, value in step.losses.items()}
    return Moment(run, state.step, loop.progress(), state.seconds, losses, state.objective, state.averaged(), loop.stop)


def _tell_of_saved(told: Callbacks, saving: Saving, *, wait: bool) -> None:
    if (at := saving.settled(wait=wait)) is not None:
        told.call("saved", at)


def _tell(told: Callbacks, at: Moment, row: Mapping[str, Any] | None, measured: Mapping[str, float]) -> None:
    if row is not None:
        told.call("logged", replace(at, numbers=row))
    if measured:
        told.call("measured", replace(at, numbers=measured))


def _announce(setup: Setup, log: Log) -> None:
    if setup.resumed is not None:
        log.say(f"resuming from {setup.resumed.name}, step {setup.state.step}")
        if setup.resumed.remark:
            log.say(setup.resumed.remark)
    objective = setup.state.objective
    trains_variance = any(term.loss.trains_variance for term in objective.terms.values())
    if objective.denoiser.variance.outputs > 1 and not trains_variance:
        log.say("variance: no term of this objective trains the learned variance; it stays halfway in log scale")


def _say_of_times(loop: Loop, log: Log) -> None:
    """Times that were to learn and have not begun to, or that were to go through all levels."""
    state = loop.setup.state
    times = state.objective.times
    text = times.unmet(state.objective.denoiser.schedule, state.step)
    if text is not None and loop.progress() >= 1:
        log.say(f"times: {type(times).__name__} {text}")


def _compile_where_it_pays(setup: Setup, log: Log) -> None:
    """As the options say, or as the run was trained before; a network that cannot be compiled is trained without."""
    state, wanted, budget = setup.state, setup.options.compile, setup.budget
    if wanted == "off" or setup.by_block:
        state.compiled = False
        return
    batch = setup.feed.get(0, Shard(0, setup.options.batch_size), setup.rows)
    denoiser, device = state.objective.denoiser, setup.accelerator.device
    noisy = torch.randn(batch.x0.shape, device=device, generator=torch.Generator(device).manual_seed(0))  # prompts have no x0
    trial = Trial(denoiser, noisy, torch.full((setup.rows,), 0.5, device=device), batch.cond, setup.autocast)
    with gathered(denoiser.net):
        if wanted == "auto" and state.compiled is None:
            state.compiled = repays_compiling(trial, budget.steps, budget.seconds)
        if wanted == "on" or state.compiled:
            log.say("compiling the network: about half a minute, the first time")
            if any(isinstance(m, FromGradients) for m in state.objective.multipliers.values()):
                keep_buffers()
            failure = compile_network(trial)
            state.compiled = failure is None
            if failure:
                log.say(f"the network was not compiled, training continues without: {failure}")
    denoiser.zero_grad()  # of weights that are split the trial has gone on to their parts


def _blame(saving: Saving) -> str:
    """What to say of a step that is not finite. Checkpoints before it are good; without one, this state is the best."""
    setup, run = saving.setup, saving.run
    saving.settled(wait=True)
    bad_data, (what, kept) = data_are_bad(setup), found_not_finite(setup, run)
    if not checkpoints(run) and setup.state.not_finite() is None:
        saving.begin()
        saving.settled(wait=True)
    if bad_data:
        where = f", kept in {', '.join(kept)}" if kept else ""
        return f"samples of step {setup.state.step} hold values that are not finite{where}: mend the data, and train anew"
    batch = f"; its batch is kept in {', '.join(kept)}" if kept else ""
    return f"{what} is not finite at step {setup.state.step}: {way_back(run)}, or give that term less weight{batch}"


def _measured(setup: Setup, ended: bool) -> dict[str, float]:
    """The averaged weights on held-out images, and what is watched of samples, when it is time: by all processes."""
    found = watched(setup, ended=ended)
    if setup.held_out is None or not setup.held_out.due(setup.state.step, ended):
        return found
    return found | setup.held_out.measure(setup.state.averaged(), setup.shares)
