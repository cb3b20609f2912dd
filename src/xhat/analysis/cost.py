"""What a training step costs: the most bytes of tensors alive at once, and seconds, on any device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.data.batch import Batch, Extra
from xhat.diffusion.denoiser import Condition
from xhat.losses.image import ImageLoss
from xhat.objective.objective import Objective
from xhat.objective.terms import Term
from xhat.sampling.memory import PeakBytes


@dataclass(frozen=True)
class Cost:
    """Of one training step, backward pass included.

    Attributes:
        seconds: the shorter of two runs.
        bytes: of tensors at the peak, those that were there before left out.
    """

    seconds: float
    bytes: int


def cost(step: Callable[[], None], device: torch.device) -> Cost:
    """Time and memory of a call, in three runs: the first for memory."""
    with PeakBytes() as counted:
        step()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Cost(min(seconds), counted.peak)


def term_costs(objective: Objective, x0: Tensor, cond: Condition | None = None, extra: Extra | None = None) -> dict[str, Cost]:
    """The cost of a step with the terms that are no image losses, under "base"; and with each image loss added to them.

    Gates count as open and factors as 1, so that it is the cost of a step at which the term counts.

    Args:
        objective: of a network with gradients.
        x0: one batch, as large as a process sees at a time.
        cond: keyword arguments of the network.
        extra: what terms see as `draw.extra`.
    """
    images = {name: term.loss for name, term in objective.terms.items() if isinstance(term.loss, ImageLoss)}
    base = {name: Term(term.loss) for name, term in objective.terms.items() if name not in images}
    batch = Batch(x0, cond, extra)
    found = {"base": _of_step(objective, base, batch)} if base else {}
    return {**found, **{name: _of_step(objective, {**base, name: Term(loss)}, batch) for name, loss in images.items()}}


def _of_step(objective: Objective, terms: dict[str, Term], batch: Batch) -> Cost:
    part = Objective(objective.denoiser, terms, seed=objective.seed)

    def step() -> None:
        part.zero_grad()
        part(batch.x0, cond=batch.cond, extra=batch.extra)["loss"].backward()

    return cost(step, batch.x0.device)
