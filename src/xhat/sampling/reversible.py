"""The gradient of a whole chain in the memory of two images: each step's start is computed again from what came after it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_unflatten

from xhat.sampling.chain import Chain
from xhat.sampling.samplers import leapfrog, straight

APART = 0.02
"""How far an image may come back from where it started, in proportion to the starts."""


def run(chain: Chain) -> Tensor:
    """The end of a chain of `Leapfrog` with its gradient: in the network's parameters, the condition and the start.

    Forward, w_(i+1) = c_i w_(i-1) + (1 - c_i) w_i + b_i slope(z_i), without a gradient. Backward, from the last two: w_i gives
    slope(z_i), a network call that the gradient needs anyway, and w_(i-1) = (w_(i+1) - (1 - c_i) w_i - b_i slope(z_i))/c_i.
    That is as many calls as a checkpointed chain makes, and two images in place of one for each step. They are float64, so
    that n steps back do not lose what n steps forward had.

    Raises:
        ValueError: something has a gradient that would be lost (the schedule, the times, a condition of an unknown kind), the
            network has dropout, or two times have the same noise. In the backward pass: the network reads something else that
            has a gradient, or the chain does not lead back to its start.
    """
    denoiser, schedule = chain.model.denoiser, chain.model.schedule
    if chain.times.requires_grad or any(p.requires_grad for p in schedule.parameters()):
        raise ValueError("Reversible() has no gradient for a schedule or times that learn: use AllSteps(), or freeze them")
    if any(isinstance(part, _DropoutNd) and part.p and part.training for part in denoiser.modules()):
        raise ValueError("Reversible() calls the network twice, and dropout answers differently: use AllSteps()")
    told, _ = tree_flatten(dict(chain.model.cond or {}))
    if any(isinstance(x, Mapping) for x in told):
        raise ValueError("Reversible() needs conditions that are tensors, or dicts, lists and tuples of them: use AllSteps()")
    if bool((straight(schedule, chain.times)[1].diff() == 0).any()):
        raise ValueError("Reversible() cannot take back a step that changes no noise: leave out times near the schedule's ends")
    given = [x for x in told if isinstance(x, Tensor) and x.requires_grad]
    weights: list[Tensor] = [p for p in denoiser.parameters() if p.requires_grad]
    end: Tensor = _Chain.apply(chain, len(given), chain.start, *given, *weights)  # type: ignore[no-untyped-call]
    return end


class _Chain(torch.autograd.Function):
    """(chain, how many conditions have a gradient, start, these, weights) -> the end."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, conditions: int, start: Tensor, *learned: Tensor) -> Tensor:
        device = start.device.type
        ctx.chain, ctx.conditions = chain, conditions
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
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
        w, after, r, u, start, *learned = ctx.saved_tensors
        # copies: the graph behind a condition is the caller's, whose own backward pass goes through it
        told = [x.detach().requires_grad_() for x in learned[: ctx.conditions]]
        learned = [*told, *learned[ctx.conditions :]]
        chain = _told(ctx.chain, told)
        asked = [k for k, wanted in enumerate(ctx.needs_input_grad[3:]) if wanted]
        of_after, of_w = r[-1] * given.double(), torch.zeros_like(w)  # gradients in w_(i+1) and w_i
        sums: list[Tensor | None] = [None] * len(learned)
        device, dtype, enabled = ctx.autocast
        for i in reversed(range(chain.steps)):
            of_before, of_slope = _factors(u, i)
            with torch.enable_grad(), torch.autocast(device, dtype, enabled):
                leaf = w.detach().requires_grad_()
                slope = _slope(chain, i, r, leaf)
            if i == chain.steps - 1:
                _require_known(slope, [leaf, *learned])
            inputs, outward = [leaf, *(learned[k] for k in asked)], (of_slope * of_after).to(slope.dtype)
            of_leaf, *found = torch.autograd.grad(slope, inputs, outward, allow_unused=True)
            for k, more in zip(asked, found, strict=True):
                so_far = sums[k]
                sums[k] = more if so_far is None else so_far if more is None else so_far + more
            of_w, of_before_w = of_w + (1 - of_before) * of_after + of_leaf, of_before * of_after
            if i:
                before = (after - (1 - of_before) * w - of_slope * slope.detach()) / of_before
                w, after, of_after, of_w = before, w, of_w, of_before_w
        _require_start(start, r[0] * w)
        return None, None, (of_w / r[0]).to(start.dtype), *sums


def _slope(chain: Chain, number: int, r: Tensor, w: Tensor) -> Tensor:
    """noise_hat - x0_hat at the start of a step, float64."""
    p = chain.model((r[number] * w).to(chain.start.dtype), chain.time(number))
    return (p.noise - p.x0).double()


def _factors(u: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Of w_(i-1) and of the slope in step i; the first is Euler's."""
    return leapfrog(u[max(0, number - 1)], u[number], u[number + 1])


def _told(chain: Chain, copies: Sequence[Tensor]) -> Chain:
    """The chain with these in place of the conditions that have a gradient."""
    leaves, tree = tree_flatten(dict(chain.model.cond or {}))
    own = iter(copies)
    leaves = [next(own) if isinstance(x, Tensor) and x.requires_grad else x for x in leaves]
    return replace(chain, model=replace(chain.model, cond=tree_unflatten(leaves, tree)))


def _require_known(slope: Tensor, known: Sequence[Tensor]) -> None:
    """Refuse a gradient that would be lost: of a tensor that the network reads, and that is none of these."""
    nodes, seen, ours = [slope.grad_fn], set[Any](), {id(x) for x in known}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in ours:
            raise ValueError(
                "Reversible() has no gradient for something that the network reads beside its parameters and its condition "
                f"(of shape {tuple(variable.shape)}: a null that learns, or weights gathered block by block): use AllSteps()"
            )
        nodes += [following for following, _ in node.next_functions]


def _require_start(start: Tensor, found: Tensor) -> None:
    size = start.double().square().mean().sqrt().clamp(min=1e-6)
    apart = float(((found - start).flatten(1).square().mean(1).sqrt() / size).max())
    if not apart <= APART:
        raise ValueError(
            f"Reversible(): the way back through the chain missed its start by {apart:.1%}: the network answers the same "
            "images differently, or the chain is unstable. Use AllSteps(), or more or more even steps"
        )
