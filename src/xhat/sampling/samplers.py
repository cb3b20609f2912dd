"""Samplers: six rules for a step from z_t to z_s."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Conditioned, Prediction
from xhat.diffusion.gaussians import Gaussian, transition
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.sharded import anywhere
from xhat.registry import SAMPLERS
from xhat.tensors import over_images

__all__ = ["DDIM", "DDPM", "DPMSolver2M", "Euler", "Heun", "Leapfrog", "Sampler", "State"]

State = tuple[Tensor, ...]
"""What a sampler keeps from one step for the next; empty for most."""


class Sampler:
    """A rule for one step; frozen, so that what a run remembers is in `state` alone."""

    @property
    def stochastic(self) -> bool:
        """Whether a step uses its `noise`."""
        return False

    @property
    def noises(self) -> int:
        """How many of them a step takes; more than one come stacked, (noises, B, ...)."""
        return 1

    @property
    def passes_gradients(self) -> bool:
        """Whether what comes out depends differentiably on the network, so that it can be trained through."""
        return True

    def rows(self, index: Tensor) -> "Sampler":
        """The sampler for some of the samples, by their numbers: of one that treats them differently, what is theirs."""
        return self

    def init(self, z: Tensor) -> State:
        """What the first step gets as `state`."""
        return ()

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        """One step down.

        Args:
            model: the denoiser under its condition, a function of z and t.
            z: images at t, (B, C, H, W).
            t: the time of each image, (B,).
            s: the next one, (B,), s < t.
            noise: standard normal, shaped like z, fresh at each step; see `noises`.
            state: of the step before.

        Returns:
            Images at s, and the state for the next step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def transition(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """The distribution of a stochastic sampler's step, p(z_s | z_t); see `step`.

        Raises:
            ValueError: its steps are no Gaussians.
        """
        raise ValueError(f"a step of {self} is no Gaussian with a density: use DDPM() or DDIM(eta) with eta > 0")


@SAMPLERS.register
@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling from p(z_s | z_t) with the denoiser's reverse variance; no noise into t = 0 (DDPM, algorithm 2)."""

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        return self.transition(model, z, t, s).sample(over_images((s > 0), z) * noise), state

    def transition(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return model.reverse(z, t, s)


@SAMPLERS.register
@dataclass(frozen=True)
class DDIM(Sampler):
    """z_s = alpha_s x0_hat + sqrt(sigma_s² - c²) noise_hat + c noise, c² = eta² beta-tilde.

    Song et al. 2021, Denoising diffusion implicit models, eq. 12 and 16.
    """

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        mean, variance = self._step(model, z, t, s)
        return (mean + variance.sqrt() * noise if self.stochastic else mean), state

    def transition(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        if not self.stochastic:
            return super().transition(model, z, t, s)
        mean, variance = self._step(model, z, t, s)
        return Gaussian(mean, variance.log())

    def _step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z_s."""
        p = model(z, t)
        alpha, sigma = _at(model.schedule, s, z)
        if not self.stochastic:
            return alpha * p.x0 + sigma * p.noise, torch.zeros_like(sigma)
        variance = over_images(self.eta**2 * transition(model.schedule, t, s).posterior_variance, z)
        rest = (sigma**2 - variance).clamp(min=0).sqrt()
        return alpha * p.x0 + rest * p.noise, variance


@SAMPLERS.register
@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's rule for the probability-flow ODE on the straight path.

    With r = alpha + sigma, u = sigma/r and w = z/r, every schedule is a flow: dw/du = noise_hat - x0_hat, regular at both
    ends. On `Flow` it is rectified flow's Euler step; on any schedule it equals DDIM without noise.
    """

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        return _straight(model.schedule, z, t, s, _velocity(model(z, t))), state


@SAMPLERS.register
@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's second-order rule on the straight path of `Euler`: two network calls, but one into t = 0.

    Karras et al. 2022, algorithm 1, in the coordinates of `Euler` instead of sigma.
    """

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        slope = _velocity(model(z, t))
        ahead = _straight(model.schedule, z, t, s, slope)
        goes_on = s > 0  # at 0 no noise is left for the network to read the slope from
        if not anywhere(bool(goes_on.any()), model.denoiser.net):
            return ahead, state
        second = _velocity(model(ahead, torch.where(goes_on, s, t)))
        slope = torch.where(over_images(goes_on, z).bool(), (slope + second) / 2, slope)
        return _straight(model.schedule, z, t, s, slope), state


@SAMPLERS.named("dpm2m")
@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M): second order with one network call a step (Lu et al. 2022, algorithm 2).

    With l = logsnr/2 and h = l_s - l_t: z_s = (sigma_s/sigma_t) z_t - alpha_s (e^-h - 1) D, D extrapolated from this x0_hat
    and the last one. The first step, the step into t = 0, and steps from or to an infinite logsnr are of first order.
    """

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        schedule, x0 = model.schedule, model(z, t).x0
        wide_t, wide_s = t.to(torch.float64), s.to(torch.float64)
        l_t, l_s = schedule.logsnr(wide_t) / 2, schedule.logsnr(wide_s) / 2
        h = l_s - l_t
        d = x0
        if state:
            x0_before, l_before = state
            share = h / (2 * (l_t - l_before))
            # not next to an end of infinite logsnr, nor into t = 0, a far jump in logsnr from where D was extrapolated
            usable = torch.isfinite(share) & (s > 0)
            share = over_images(torch.where(usable, share, torch.zeros_like(share)), z)
            d = x0 + share * (x0 - x0_before)
        keep = over_images((schedule.sigma(wide_s) / schedule.sigma(wide_t)), z)
        add = over_images((-schedule.alpha(wide_s) * torch.expm1(-h)), z)
        return keep * z + add * d, (x0, l_t)


@SAMPLERS.register
@dataclass(frozen=True)
class Leapfrog(Sampler):
    """Second order with one network call a step, and each step can be taken back: for chains that `Reversible` differentiates.

    On the straight path of `Euler`, with k = u_t - u_before and h = u_s - u_t: w_s = c w_before + (1 - c) w_t + b slope(z_t),
    c = h²/k², b = h (h + k)/k, which is exact for parabolas. w_before can be had from the other two. The first step, and one
    after a rest, are Euler's. It is O-BELM (Wang et al. 2024, Bidirectional explicit linear multi-step sampler), there in
    sigma/alpha. In few steps `Heun` and `DDIM` draw better.
    """

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        schedule, slope = model.schedule, _velocity(model(z, t))
        r_t, u_t = straight(schedule, t)
        r_s, u_s = straight(schedule, s)
        w, h = z / over_images(r_t, z), u_s - u_t
        if not state:
            return over_images(r_s, z) * (w + over_images(h, z) * slope), (w, u_t)
        before, u_before = state
        of_before, of_slope = leapfrog(u_before, u_t, u_s)
        ahead = torch.lerp(w, before, over_images(of_before, z)) + over_images(of_slope, z) * slope
        return over_images(r_s, z) * ahead, (w, u_t)


def leapfrog(u_before: Tensor, u_t: Tensor, u_s: Tensor) -> tuple[Tensor, Tensor]:
    """c and b of `Leapfrog`; 0 and h after a rest, u_before = u_t."""
    h, k = u_s - u_t, u_t - u_before
    rested = k == 0
    ratio = torch.where(rested, torch.zeros_like(k), h / torch.where(rested, torch.ones_like(k), k))
    return ratio**2, h * (1 + ratio)


def straight(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """r = alpha + sigma and u = sigma/r at t, float64: w = z/r moves by dw/du = noise_hat - x0_hat."""
    wide = t.to(torch.float64)
    sigma = schedule.sigma(wide)
    r = schedule.alpha(wide) + sigma
    return r, sigma / r


def _velocity(p: Prediction) -> Tensor:
    return p.noise - p.x0


def _straight(schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
    """z_s/r_s = z_t/r_t + (u_s - u_t) velocity, with r = alpha + sigma, u = sigma/r."""
    (r_t, u_t), (r_s, u_s) = straight(schedule, t), straight(schedule, s)
    return over_images(r_s, z) * (z / over_images(r_t, z) + over_images(u_s - u_t, z) * velocity)


def _at(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    wide = t.to(torch.float64)
    return over_images(schedule.alpha(wide), z), over_images(schedule.sigma(wide), z)
