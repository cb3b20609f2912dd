"""The gradient of a whole chain in the memory of two images: each step's start is computed again from what came after it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from xhat.sampling.chain import Chain
from xhat.sampling.samplers import leapfrog, straight

APART = 0.01
"""How far the start may lie from where the backward pass arrives, in proportion to the start."""


def run(chain: Chain) -> Tensor:
    """The end of a chain of `Leapfrog` with its gradient: in the network's parameters, the condition and the start.

    Forward, w_(i+1) = c_i w_(i-1) + (1 - c_i) w_i + b_i slope(z_i), without a gradient. Backward, from the last two: w_i gives
    slope(z_i), a network call that the gradient needs anyway, and w_(i-1) = (w_(i+1) - (1 - c_i) w_i - b_i slope(z_i))/c_i.
    That is as many calls as a checkpointed chain makes, and two images in place of one for each step. They are float64, so
    that n steps back do not lose what n steps forward had.

    Raises:
        ValueError: the schedule learns: its part of the gradient would be lost.
        ValueError: in the backward pass: the chain does not lead back to its start.
    """
    schedule = chain.model.schedule
    if any(p.requires_grad for p in schedule.parameters()):
        raise ValueError("Reversible() has no gradient for a schedule that learns: use AllSteps(), or freeze the schedule")
    learned: list[Tensor] = [p for p in chain.model.denoiser.parameters() if p.requires_grad]
    learned += [x for x in tree_leaves(chain.model.cond) if isinstance(x, Tensor) and x.requires_grad]
    end: Tensor = _Chain.apply(chain, chain.start, *learned)  # type: ignore[no-untyped-call]
    return end


class _Chain(torch.autograd.Function):
    """(chain, start, what has a gradient) -> the end."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, start: Tensor, *learned: Tensor) -> Tensor:
        device = start.device.type
        ctx.chain, ctx.autocast = chain, (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        r, u = straight(chain.model.schedule, chain.times)
        w = start.double() / r[0]
        before = w
        for i in range(chain.steps):
            of_before, of_slope = _factors(u, i)
            before, w = w, torch.lerp(w, before, of_before) + of_slope * _slope(chain, i, r, w)
            if chain.callback is not None:
                chain.callback(i + 1, (r[i + 1] * w).to(start.dtype))
        ctx.save_for_backward(before, w, r, u, start, *learned)
        return (r[-1] * w).to(start.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: Tensor) -> Any:
        chain: Chain = ctx.chain
        w, after, r, u, start, *learned = ctx.saved_tensors
        of_after, of_w = r[-1] * given.double(), torch.zeros_like(w)  # gradients in w_(i+1) and w_i
        sums: list[Tensor | None] = [None] * len(learned)
        device, dtype, enabled = ctx.autocast
        for i in reversed(range(chain.steps)):
            of_before, of_slope = _factors(u, i)
            with torch.enable_grad(), torch.autocast(device, dtype, enabled):
                leaf = w.detach().requires_grad_()
                slope = _slope(chain, i, r, leaf)
            found = torch.autograd.grad(slope, [leaf, *learned], (of_slope * of_after).to(slope.dtype), allow_unused=True)
            sums = [b if a is None else a if b is None else a + b for a, b in zip(sums, found[1:], strict=True)]
            of_w, of_before_w = of_w + (1 - of_before) * of_after + found[0], of_before * of_after
            if i:
                before = (after - (1 - of_before) * w - of_slope * slope.detach()) / of_before
                w, after, of_after, of_w = before, w, of_w, of_before_w
        _require_start(start, r[0] * w)
        return None, (of_w / r[0]).to(start.dtype), *sums


def _slope(chain: Chain, number: int, r: Tensor, w: Tensor) -> Tensor:
    """noise_hat - x0_hat at the start of a step, float64."""
    p = chain.model((r[number] * w).to(chain.start.dtype), chain.time(number))
    return (p.noise - p.x0).double()


def _factors(u: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Of w_(i-1) and of the slope in step i; the first is Euler's."""
    return leapfrog(u[max(0, number - 1)], u[number], u[number + 1])


def _require_start(start: Tensor, found: Tensor) -> None:
    apart = float((found - start).square().mean().sqrt() / start.double().square().mean().sqrt())
    if not apart <= APART:
        raise ValueError(
            f"Reversible(): the way back through the chain missed its start by {apart:.1%}: the network answers the same "
            "images differently (dropout), or the chain is unstable. Use AllSteps(), or more or more even steps"
        )
