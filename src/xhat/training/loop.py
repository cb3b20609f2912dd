"""One training step: the learning rate, gradients over micro-batches, agreement between processes, new weights."""

import contextlib
import time
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from xhat import rng, tensors
from xhat.data.batch import Batch
from xhat.diffusion.sharded import whole
from xhat.errors import RunError
from xhat.rng import Shard
from xhat.training.agreement import Agreed, Agreement
from xhat.training.faults import mendable
from xhat.training.setup import Setup
from xhat.training.sharing import shard_of
from xhat.training.splitting import apart_from_the_network, average_gradients
from xhat.training.stop import Stop


class Step(NamedTuple):
    """What the gradients of a step say; the weights have not changed yet.

    Attributes:
        losses: what the objective returned, averaged over this process's micro-batches.
        norm: of the gradient, before clipping.
        rate: learning rate.
        finite: whether loss and gradient are, on all processes.
        asked: the number of the signal that asked one of the processes to stop, see `Stop.asked`; 0 if none did.
    """

    losses: dict[str, Tensor]
    norm: Tensor
    rate: float
    finite: bool
    asked: int


class Loop:
    """The steps of a run on this process: `gradients`, then `update`, until `progress` is 1.

    Args:
        setup: what is trained; its state changes.
        stop: whether somebody asks to stop.
        started: time.perf_counter() at which the run would have started, had it never been interrupted.
    """

    def __init__(self, setup: Setup, stop: Stop, started: float) -> None:
        self.setup, self.state, self.accelerator = setup, setup.state, setup.accelerator
        self.stop, self.started, self.alone = stop, started, self.accelerator.num_processes == 1
        # of a 1 x 1 convolution the same bytes have two kinds of strides
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        objective = self.state.objective
        # who learns from the losses of each step waits for them anyway
        learns = objective.times.learns or objective.balancer.learns
        self.agreement = Agreement(self.accelerator, lags=not learns and self.accelerator.device.type in tensors.PINNED)
        self.begun: list[int] = []  # the steps that nothing is known of yet
        # optimizers need nothing that Accelerate would add; what is split is prepared already
        self.split = self.state.split  # which looks at each weight
        self.prepared = objective if self.split else self.accelerator.prepare(objective)
        self.apart = apart_from_the_network(objective) if self.split else []

    def progress(self) -> float:
        """Share of the budget that is spent; 1 at the end."""
        return self.setup.budget.progress(self.state.step, self.state.seconds)

    def gradients(self) -> Step:
        """Set the learning rate, and compute the gradients of the next step on all micro-batches.

        On a GPU, `finite` is of the step before: see `settled`.

        Raises:
            RunError: there is not enough memory, or another process of the training has ended.
        """
        rate = self.setup.rates.set(self.state.step, self.state.seconds)
        with mendable(self.setup):
            losses, norm = self._accumulate()
            agreed = self._agree(losses, norm)
        self.state.seconds = agreed.seconds
        return Step(losses, norm, rate, agreed.finite, agreed.asked)

    def update(self) -> None:
        """New weights, and their average: the step is done."""
        with mendable(self.setup):
            for optimizer in self.state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for average in (self.state.average, *self.state.tracks):
            if average is not None:
                average.update_parameters(self.state.objective.denoiser)
        self.state.step += 1

    def end(self) -> None:
        """Let the other processes go.

        DDP's reducer goes first: were it the last to hold the process group, that would end under the GIL, and hang if a thread
        of gloo, still busy with the barrier before, waits for the GIL.
        """
        self.accelerator.wait_for_everyone()  # without it gloo may abort while the others are still writing
        self.prepared = self.state.objective
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _accumulate(self) -> tuple[dict[str, Tensor], Tensor]:
        """Losses and clipped gradients of one step, over all micro-batches; the norm before clipping."""
        setup, step, parts = self.setup, self.state.step, self.setup.options.accumulate
        losses: dict[str, Tensor] = {}
        for part in range(parts):
            shard, batch = micro_batch(setup, step, part)
            with self._quiet(last=part == parts - 1):
                values = self._values(step, shard, batch)
                self.accelerator.backward(values["loss"] / parts)
            for name, value in values.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach() / parts
        average_gradients(self.apart)
        norm = self.accelerator.clip_grad_norm_(self.state.objective.parameters(), setup.options.optimizer.grad_clip)
        assert norm is not None
        return losses, whole(norm)

    def _quiet(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are added up over the processes with the last micro-batch, where the others can wait for it."""
        if self.setup.by_block:  # each time: gradients that wait are whole on each process
            return contextlib.nullcontext()
        if self.split:
            self.prepared.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif not last:
            quiet: contextlib.AbstractContextManager[None] = self.accelerator.no_sync(self.prepared)
            return quiet
        return contextlib.nullcontext()

    def _values(self, step: int, shard: Shard, batch: Batch) -> dict[str, Tensor]:
        try:
            with self.setup.autocast:
                values: dict[str, Tensor] = self.prepared(batch.x0, step=step, cond=batch.cond, extra=batch.extra, shard=shard)
                return values
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise RunError(
                "some parameters get no gradient, which several processes would wait for: use them, or freeze them with "
                "requires_grad_(False)"
            ) from error

    def settled(self) -> bool:
        """Whether all steps so far were finite; one that was not is the step under way again, and has changed no weights."""
        return all(agreed.finite for agreed in self._known(wait=True))

    def _agree(self, losses: dict[str, Tensor], norm: Tensor) -> Agreed:
        """Whether all is finite, whether to stop, and the time, of the last step that is known."""
        bad = ~torch.isfinite(losses["loss"].detach() + norm)
        self._hold(bad)
        seconds = time.perf_counter() - self.started
        self.agreement.vote(bad, self.stop.asked, seconds)
        self.begun.append(self.state.step)
        found = self._known(wait=False)
        return found[-1] if found else Agreed(True, self.stop.asked, seconds)

    def _known(self, *, wait: bool) -> list[Agreed]:
        """What is known now of steps that were not, up to one that was not finite: the state is where that step began."""
        known: list[Agreed] = []
        for agreed in self.agreement.reached(wait=wait):
            known.append(agreed)
            if not agreed.finite:
                self.state.step = self.begun[0]
                self.state.objective.calls.back_to(self.state.step)
                break
            del self.begun[0]
        return known

    def _hold(self, bad: Tensor) -> None:
        """Where the host does not know yet, optimizers see for themselves that there is nothing to do."""
        if self.agreement.lags:
            found_inf = bad.float().reshape(())
            for optimizer in self.state.optimizers:
                optimizer.found_inf = found_inf  # type: ignore[attr-defined]


def micro_batch(setup: Setup, step: int, part: int) -> tuple[Shard, Batch]:
    """A part of a step's batch on this process, with the numbers that dropout and the like draw from set to its own.

    They are a function of (seed, step, process, part), so that there is nothing to checkpoint; they are set after the data are
    read, which may draw from the same global numbers.
    """
    rank = setup.accelerator.process_index
    seed = rng.generator(setup.state.objective.seed, "network", step, rank).initial_seed()
    shard = shard_of(setup.options, setup.rows, setup.accelerator, part)
    batch = setup.feed.get(step, shard, setup.rows)
    torch.manual_seed(seed + part)
    return shard, batch
