"""The objective: a sum of per-image terms over one shared draw (x0, t, noise, z) and one network call."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xhat import counted
from xhat.counted import Shard
from xhat.denoiser import Condition, Denoiser, Prediction
from xhat.gates import Gate, always
from xhat.shapes import over_images
from xhat.times import Binned, Stratified, TimeSampler


@dataclass(frozen=True)
class Draw:
    """What all terms of one step share.

    Attributes:
        x0: clean images (B, C, H, W).
        t: times (B,).
        noise: unit-variance noise shaped like x0; every target is made of it.
        z: alpha x0 + sigma noise, what the network saw (with input perturbation, slightly noisier).
        prediction: the one network call.
        importance: uniform density / sampler's density at t, (B,).
        cond: what the network was conditioned on.
        step: the training step.
        generator: for a term's own randomness, a function of (seed, step, first sample).
    """

    x0: Tensor
    t: Tensor
    noise: Tensor
    z: Tensor
    prediction: Prediction
    importance: Tensor
    cond: Condition | None
    step: int
    generator: torch.Generator


class Loss(nn.Module):
    """A term's value per image: forward(denoiser, draw) -> (B,), unweighted and unreduced.

    Attributes:
        at_drawn_time: whether the value depends on the drawn t, and so is importance-weighted. A loss on a whole chain
            from pure noise does not.
    """

    at_drawn_time: bool = True

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(denoiser, draw) -> (B,)")

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        """The weight (N,) that this loss puts on ‖noise - noise_hat‖² at each logsnr; None if it is no such loss."""
        return None


@dataclass(frozen=True)
class Term:
    """One summand of an objective: a loss, its factor, and when it counts."""

    loss: Loss
    weight: float = 1.0
    when: Gate = always


def whole_batch(rows: int) -> Shard:
    """The share of this rank, if each has so many rows: all of them in one process."""
    if dist.is_available() and dist.is_initialized():
        return Shard(dist.get_rank() * rows, dist.get_world_size() * rows)
    return Shard(0, rows)


class Objective(nn.Module):
    """sum_k weight_k · mean_b(importance_b · loss_k,b) over one draw; this module is what a trainer prepares and calls.

    Args:
        denoiser: what is trained.
        terms: name -> Term.
        times: where the samples go; bound here to the denoiser's schedule.
        seed: of all draws; sample k of step n depends on (seed, n, k) alone.
        input_perturbation: gamma of Ning et al. 2023 (Input perturbation reduces exposure bias, algorithm 1): the network
            sees noise + gamma xi instead of noise, the target keeps the clean noise.

    Raises:
        ValueError: no terms, a reserved or dotted name, or a loss that the denoiser cannot serve.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        terms: Mapping[str, Term],
        times: TimeSampler | None = None,
        *,
        seed: int = 0,
        input_perturbation: float = 0.0,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError('an objective needs at least one term, for example {"denoise": Term(Denoising())}')
        for name in terms:
            if name == "loss" or "." in name:
                raise ValueError(f'term name "{name}" is not possible: "loss" is the sum, and dots separate config keys')
        self.denoiser, self.terms, self.seed = denoiser, dict(terms), seed
        self.input_perturbation = input_perturbation
        self.times = times if times is not None else Stratified()
        self.times.bind(denoiser.schedule)
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._seen_step = -1

    def forward(
        self,
        x0: Tensor,
        *,
        step: int = 0,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            x0: clean images (B, C, H, W) in [-1, 1].
            step: the training step, which the draw is a function of.
            cond: keyword arguments of the network.
            generator: draws times and noise from here instead of from (seed, step).
            shard: which samples of the global batch x0 holds; by default the batches of all ranks, in order, are the
                global batch.

        Returns:
            {"loss": the weighted sum, each term's name: its unweighted mean} for the terms that count at this step.

        Raises:
            ValueError: a term does not return one number per image.
        """
        shard = shard or whole_batch(x0.shape[0])
        draw = self.draw(x0, step=step, cond=cond, generator=generator, shard=shard)
        total, values, seen = x0.new_zeros(()), {}, {}
        for name, term in self.terms.items():
            if not term.when(self.seed, step):
                # parameters of the term's own (a learned uncertainty) get a gradient of 0, which DDP waits for
                total = total + sum((0 * p.sum() for p in term.loss.parameters()), start=x0.new_zeros(()))
                continue
            value = term.loss(self.denoiser, draw)
            if value.shape != draw.t.shape:
                raise ValueError(
                    f'term "{name}" returned shape {tuple(value.shape)} instead of one value per image, ({x0.shape[0]},): '
                    "reduce over pixels only, for example with x.flatten(1).mean(1)"
                )
            if term.loss.at_drawn_time:
                seen[name] = value.detach()
                value = value * draw.importance
            values[name] = value.mean()
            total = total + term.weight * values[name]
        if self.training and isinstance(self.times, Binned):
            weighted = (self.terms[name].weight * value for name, value in seen.items())
            self._learn_times(self.times, draw, sum(weighted, start=x0.new_zeros(x0.shape[0])), shard)
        if not values:
            total = 0 * draw.prediction.raw.sum()  # no gate is open: a gradient of zero, not none
        return {"loss": total, **values}

    def draw(
        self,
        x0: Tensor,
        *,
        step: int = 0,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
    ) -> Draw:
        """The shared draw of `forward`, network call included."""
        shard = shard or whole_batch(x0.shape[0])
        own = slice(shard.first, shard.first + x0.shape[0])
        if generator is None:
            time_generator = counted.generator(self.seed, "times", step)
        else:  # times are drawn on the CPU, the given generator may live elsewhere
            start = torch.randint(2**62, (), generator=generator, device=generator.device)
            time_generator = torch.Generator().manual_seed(int(start))
        t, importance = (x[own].to(x0.device) for x in self.times.sample(shard.total, time_generator))
        noise = self._normal(x0, "noise", step, shard, generator)
        schedule = self.denoiser.schedule
        alpha, sigma = over_images(schedule.alpha(t), x0), over_images(schedule.sigma(t), x0)
        seen = noise
        if self.input_perturbation:
            seen = noise + self.input_perturbation * self._normal(x0, "perturbation", step, shard, generator)
        z = torch.addcmul(alpha * x0, sigma, seen)
        return Draw(
            x0=x0,
            t=t,
            noise=noise,
            z=z,
            prediction=self.denoiser(z, t, cond),
            importance=importance,
            cond=cond,
            step=step,
            generator=generator or counted.generator(self.seed, "terms", step, shard.first, device=x0.device),
        )

    def effective_weighting(self, logsnr: Tensor) -> Tensor:
        """The whole objective's weight on the noise error relative to the bound's, w(logsnr) of Kingma & Gao 2023, eq. 3.

        L = ½ E_t[(-d logsnr/dt) w(logsnr) ‖noise - noise_hat‖²] up to the number of pixels; summed over the terms that are
        weighted squared errors, whatever space they are written in. Independent of the time sampler; gates count as open.

        Args:
            logsnr: (N,).
        """
        schedule = self.denoiser.schedule
        total = torch.zeros_like(logsnr)
        for term in self.terms.values():
            weight = term.loss.noise_weight(self.denoiser, logsnr)
            if weight is not None:
                total = total + term.weight * weight
        t = schedule.t_of(logsnr.to(torch.float64))
        return total / (-0.5 * schedule.dlogsnr(t)).to(logsnr.dtype)

    def _normal(self, x0: Tensor, purpose: str, step: int, shard: Shard, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        shape = tuple(x0.shape)
        drawn = counted.normal(shape, self.seed, purpose, step, first=shard.first, device=x0.device)
        return drawn.to(x0.dtype)

    def _learn_times(self, times: Binned, draw: Draw, per_image: Tensor, shard: Shard) -> None:
        """Hand the sampler the losses of the whole global batch, once, in the order of its samples, on every rank."""
        if self._seen_step != draw.step:
            self._seen, self._seen_step = [], draw.step
        self._seen.append((draw.t, per_image))
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if world * sum(t.numel() for t, _ in self._seen) < shard.total:
            return  # more micro-batches of this step follow; they draw from the same history
        for own in self._seen:
            pair = torch.stack(own)
            if world > 1:
                parts = [torch.empty_like(pair) for _ in range(world)]
                dist.all_gather(parts, pair)
                pair = torch.cat(parts, dim=1)
            times.update(pair[0], pair[1])
        self._seen.clear()
