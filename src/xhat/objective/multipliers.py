"""What lambda should be: multipliers of a term, with their state in buffers that are saved with the objective."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xhat.diffusion.sharded import is_split, whole
from xhat.objective.global_batch import world_size
from xhat.registry import MULTIPLIERS

__all__ = ["ConflictFree", "DualAscent", "FromGradients", "GradientRatio", "Multiplier", "flat_gradient"]


class Multiplier(nn.Module):
    """A factor of a term that finds its own value; a `Term`'s `weight` is a number or one of these.

    Its state consists of buffers: checkpointed with the objective, and equal on all ranks, because what changes it are means
    over the whole global batch.
    """

    def forward(self) -> Tensor:
        """lambda now, (), without gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define forward() -> ()")

    def observe(self, mean: Tensor, scale: Tensor) -> None:
        """Take in what the term was over the global batch, after each training step at which it counted.

        Args:
            mean: of the penalty, weighted by noise level as the term is, sum(w penalty)/sum(w).
            scale: the mean weight, E[w].
        """

    def learn(self, mean: Tensor, scale: Tensor, known: Tensor) -> bool:
        """`observe`, if there was something to see; whether it was called.

        A GPU is not waited for: there `observe` is called in any case, and buffers are put back where it should not have been.

        Args:
            mean: as of `observe`.
            scale: the same.
            known: (), whether an image lay within the term's noise levels, and the mean is finite; a NaN would stay for good.
        """
        if known.device.type == "cpu" and not bool(known):
            return False
        before = [] if known.device.type == "cpu" else [buffer.detach().clone() for buffer in self.buffers()]
        self.observe(mean, scale)
        with torch.no_grad():
            for buffer, old in zip(self.buffers(), before, strict=False):
                buffer.copy_(torch.where(known, buffer, old))
        return True

    def report(self) -> dict[str, Tensor]:
        """What is logged and plotted beside the term."""
        return {"lambda": self().detach().clone()}

    def warning_message(self) -> str | None:
        """What the user should know, once."""
        return None


@MULTIPLIERS.register
class DualAscent(Multiplier):
    """ "Keep the mean penalty under `limit`": lambda = mu/|limit|, mu <- max(0, mu + rate · (mean - limit)/|limit|) each step.

    Gradient ascent on the Lagrange multiplier of  min base  subject to  mean penalty <= limit. At rest either lambda = 0 or
    the mean is the limit. mu has the unit of the base loss, whatever the penalty's. The mean is weighted by noise level as
    the term is, sum(w penalty)/sum(w).

    Args:
        limit: of the mean penalty, in its own unit; not 0. It is held on the image that the term sees: take it from the same
            estimate, because a sampler with other steps draws other samples.
        rate: change of mu per step and relative violation; too high a rate overshoots the limit and swings around it.
        patience: steps without progress towards the limit after which it is called out of reach.
    """

    price: Tensor
    scale: Tensor
    mean: Tensor
    best: Tensor
    idle: Tensor

    def __init__(self, limit: float, rate: float = 0.002, patience: int = 500) -> None:
        super().__init__()
        if not (math.isfinite(limit) and limit != 0):
            raise ValueError(f"DualAscent needs a limit that is not 0, in the penalty's unit, got {limit}")
        if not rate > 0:
            raise ValueError(f"DualAscent needs rate > 0, got {rate}")
        self.limit, self.rate, self.patience = limit, rate, patience
        self.register_buffer("price", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.full((), math.nan, dtype=torch.float64))
        self.register_buffer("mean", torch.full((), math.nan, dtype=torch.float64))
        self.register_buffer("best", torch.full((), math.inf, dtype=torch.float64))
        self.register_buffer("idle", torch.zeros((), dtype=torch.float64))
        self._waits(float(patience))

    def _waits(self, left: float) -> None:
        """So many more steps patience lasts at least: no GPU is asked before."""
        self._until, self._said = left if left > 0 else float(self.patience), left <= 0

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._waits(self.patience - float(self.idle))

    def forward(self) -> Tensor:
        return self.price / (abs(self.limit) * self.scale.nan_to_num(1.0))

    @torch.no_grad()
    def observe(self, mean: Tensor, scale: Tensor) -> None:
        mean, scale = mean.to(torch.float64), scale.to(torch.float64)
        self.scale.copy_(torch.where(self.scale.isnan(), scale, self.scale.lerp(scale, 0.05)))
        self.price.add_(self.rate * (mean - self.limit) / abs(self.limit)).clamp_(min=0)
        self.mean.copy_(torch.where(self.mean.isnan(), mean, self.mean.lerp(mean, 0.05)))
        progress = (self.best - self.mean > 0.01 * abs(self.limit)) | (self.mean <= self.limit)
        self.best.copy_(torch.where(progress, self.mean, self.best))
        self.idle.copy_(torch.where(progress, torch.zeros_like(self.idle), self.idle + 1))

    def report(self) -> dict[str, Tensor]:
        return {**super().report(), "mean": self.mean.nan_to_num(0.0)}

    def warning_message(self) -> str | None:
        self._until -= 1
        if self._until > 0:
            return None
        said, left = self._said, self.patience - float(self.idle)
        self._waits(left)
        if left > 0 or said:  # said once, not at each step from then on
            return None
        return (
            f"the mean penalty is {float(self.mean):.4g} and for {self.patience} steps came no closer to the limit "
            f"{self.limit:.4g}, with lambda at {float(self()):.3g}: it may be out of reach; raise the limit, or train longer"
        )


class FromGradients(Multiplier):
    """A multiplier that needs the gradients of its term and of the base, the terms whose weights are numbers.

    Measured on the first micro-batch of a step, over all ranks. A network that was compiled by hand needs
    torch._functorch.config.donated_buffer = False for it, since its graph is differentiated more than once.

    Attributes:
        every: steps between two measurements; each costs one more backward pass for the base and one for the term.
    """

    every: int = 1

    def due(self, step: int) -> bool:
        """Whether the gradients are to be measured at this step."""
        return step % self.every == 0

    def factors(self, base: Tensor, dot: Tensor, own: Tensor, gate: float = 1.0) -> tuple[Tensor, Tensor]:
        """From ‖g_base‖², <g_base, g_term> and ‖g_term‖² what multiplies the base, and what multiplies gate · term, ()."""
        raise NotImplementedError(f"{type(self).__name__} must define factors")


@MULTIPLIERS.register
class GradientRatio(FromGradients):
    """lambda such that ‖lambda g_term‖ = share · ‖g_base‖, over all parameters of the denoiser.

    Esser et al. 2021 (VQGAN), eq. 7, balance two terms so; here measured every few steps and averaged in log scale.

    Args:
        share: of the base's gradient norm.
        every: steps between two measurements.
        smoothing: of the average; 0 takes each measurement as it is.
    """

    factor: Tensor

    def __init__(self, share: float = 0.1, every: int = 10, smoothing: float = 0.9) -> None:
        super().__init__()
        if not share > 0:
            raise ValueError(f"GradientRatio needs share > 0, got {share}")
        if every < 1 or not 0 <= smoothing < 1:
            raise ValueError(f"GradientRatio needs every >= 1 and 0 <= smoothing < 1, got {every} and {smoothing}")
        self.share, self.every, self.smoothing = share, every, smoothing
        self.register_buffer("factor", torch.full((), math.nan, dtype=torch.float64))
        self._measured = False  # once it is, a GPU is not asked again

    def forward(self) -> Tensor:
        return self.factor.nan_to_num(0.0)

    def due(self, step: int) -> bool:
        return super().due(step) or not self._is_known()

    def _is_known(self) -> bool:
        self._measured = self._measured or not bool(self.factor.isnan())
        return self._measured

    @torch.no_grad()
    def factors(self, base: Tensor, dot: Tensor, own: Tensor, gate: float = 1.0) -> tuple[Tensor, Tensor]:
        now = (self.share * (base / own).sqrt()).to(torch.float64)
        blend = torch.exp(now.log().lerp(self.factor.log(), self.smoothing))
        found = torch.where(self.factor.isnan(), now, blend)
        self.factor.copy_(
            torch.where(torch.isfinite(now) & (now > 0), found, self.factor)
        )  # no gradient, no ratio: the last one
        return torch.ones_like(base), self()


@MULTIPLIERS.register
class ConflictFree(FromGradients):
    """Where the gradients disagree, each loses its component along the other (PCGrad, Yu et al. 2020, algorithm 1).

    g = g_b + lambda g_p, and if d = <g_b, g_p> < 0: g = (1 - lambda d/‖g_b‖²) g_b + (lambda - d/‖g_p‖²) g_p, so that neither
    loss rises to first order: <g, g_b> = (1 - cos²)‖g_b‖² and <g, g_p> = lambda (1 - cos²)‖g_p‖².

    Args:
        weight: lambda.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"ConflictFree needs weight > 0, got {weight}")
        self.weight = weight
        self.register_buffer("factor", torch.full((), float(weight), dtype=torch.float64))

    factor: Tensor

    def forward(self) -> Tensor:
        return torch.full_like(self.factor, self.weight)

    def report(self) -> dict[str, Tensor]:
        return {"lambda": self.factor.clone()}

    @torch.no_grad()
    def factors(self, base: Tensor, dot: Tensor, own: Tensor, gate: float = 1.0) -> tuple[Tensor, Tensor]:
        dot, own = gate * dot, gate**2 * own  # what is to be free of conflict is the gradient that counts
        against = dot.clamp(max=0)  # base and own are positive where it is not 0
        of_base = 1 - self.weight * torch.where(against < 0, against / base, against)
        of_term = self.weight - torch.where(against < 0, against / own, against)
        self.factor.copy_(of_term)
        return of_base, of_term


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor], *, keep: bool = False) -> Tensor:
    """d loss / d parameters as one vector, averaged over ranks, (P,); zeros where the loss does not depend on a parameter.

    Args:
        loss: ().
        parameters: of any shapes.
        keep: the graph, so that `loss` can be differentiated again.
    """
    if not loss.requires_grad:
        return torch.cat([_whole_gradient(None, p).flatten() for p in parameters])
    found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    if any(map(is_split, parameters)) and all(g is None for g, p in zip(found, parameters, strict=True) if is_split(p)):
        raise ValueError(
            "the weights were split again after the call, so that nothing can be differentiated by them: wrap the objective "
            "alone, with fully_shard(objective, reshard_after_forward=False)"
        )
    flat = torch.cat([_whole_gradient(g, p).flatten() for g, p in zip(found, parameters, strict=True)])
    if world_size() > 1:
        torch.distributed.all_reduce(flat)
        flat /= world_size()
    return flat


def _whole_gradient(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """The gradient of a parameter on this process; of a split one an equal share of the sum that all processes have."""
    if gradient is None:
        return torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    return whole(gradient) / world_size() if is_split(gradient) else gradient
