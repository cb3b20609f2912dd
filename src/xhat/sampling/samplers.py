"""Samplers: one loop, and five rules for a step from z_t to z_s."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.denoiser import Condition, Conditioned, Denoiser, Prediction
from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Schedule
from xhat.registry import SAMPLERS, SPACINGS
from xhat.tensors import over_images

State = tuple[Tensor, ...]


class Sampler:
    """A rule for one step; frozen, so that what a run remembers is in `state` alone."""

    @property
    def stochastic(self) -> bool:
        """Whether a step uses its `noise`."""
        return False

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
            noise: standard normal, shaped like z, fresh at each step.
            state: of the step before.

        Returns:
            Images at s, and the state for the next step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")


@SAMPLERS.register
@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling from p(z_s | z_t) with the denoiser's reverse variance; no noise into t = 0 (DDPM, algorithm 2)."""

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, model: Conditioned, z: Tensor, t: Tensor, s: Tensor, noise: Tensor, state: State) -> tuple[Tensor, State]:
        back = model.reverse(z, t, s)
        return back.sample(over_images((s > 0), z) * noise), state


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
        p = model(z, t)
        alpha, sigma = _at(model.schedule, s, z)
        if not self.stochastic:
            return alpha * p.x0 + sigma * p.noise, state
        variance = self.eta**2 * transition(model.schedule, t, s).posterior_variance
        variance = over_images(variance, z)
        rest = (sigma**2 - variance).clamp(min=0).sqrt()
        return alpha * p.x0 + rest * p.noise + variance.sqrt() * noise, state


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
        if not bool(goes_on.any()):
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


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    z: Tensor,
    times: Tensor,
    *,
    grad_steps: int | None = 0,
    checkpoint: bool = True,
    callback: Callable[[int, Tensor], None] | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Run the sampler through `times`, from z at times[0] to the result at times[-1].

    Args:
        denoiser: the model.
        sampler: the rule of a step.
        z: start, (B, C, H, W), at times[0]: see `prior`.
        times: (n + 1,), decreasing, see `uniform_times` and `karras_times`; or (n + 1, B), each image its own, where an
            image rests while its time does not change, see `rollout_times`.
        grad_steps: 0 differentiates nothing, K the last K steps (DRaFT-K, Clark et al. 2023), None all n.
        checkpoint: recompute each step in the backward pass instead of keeping its activations.
        callback: called with (number of steps done, z) after each step.
        cond: keyword arguments of the network.
        generator: noise of stochastic samplers; they need it or `noise`.
        noise: the noise of step i, shaped like z, instead of a generator.

    Returns:
        The images at times[-1], (B, C, H, W), unclamped.

    Raises:
        ValueError: times do not decrease, grad_steps > n, or a stochastic sampler has no generator.
    """
    steps = len(times) - 1
    falls = times.diff(dim=0)
    if steps < 1 or not bool(((falls < 0) if times.ndim == 1 else (falls <= 0)).all()):
        raise ValueError("times must decrease, with at least two entries, for example uniform_times(schedule, 50)")
    if grad_steps is not None and not 0 <= grad_steps <= steps:
        raise ValueError(f"grad_steps = {grad_steps}, but the sampler takes {steps} steps: choose 0..{steps}, or None for all")
    if sampler.stochastic and generator is None and noise is None:
        raise ValueError(f"{sampler} draws noise: pass generator=torch.Generator().manual_seed(...)")
    differentiated = steps if grad_steps is None else grad_steps
    model, state, times = denoiser.given(cond), sampler.init(z), times.to(z.device)
    for i in range(steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - differentiated):
            fresh = z  # drawn outside of the step, so that a recomputation sees the same noise
            if sampler.stochastic:
                fresh = noise(i) if noise else torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z, state = sampler_step(model, sampler, z, times[i], times[i + 1], fresh, state, checkpoint=checkpoint)
        if callback is not None:
            callback(i + 1, z)
    return z


def sampler_step(
    model: Conditioned,
    sampler: Sampler,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Tensor,
    state: State,
    *,
    checkpoint: bool = True,
) -> tuple[Tensor, State]:
    """One step of `sample`, from t to s, both () or both (B,); images with s = t rest."""
    rests = (s >= t) if t.ndim else None
    goal = s if rests is None else torch.where(rests, torch.zeros_like(s), s)  # a step that can be taken: no branch is NaN
    t, goal = t.expand(z.shape[0]), goal.expand(z.shape[0])
    if checkpoint and torch.is_grad_enabled():
        ahead, state = recompute(sampler.step, model, z, t, goal, noise, state, use_reentrant=False)
    else:
        ahead, state = sampler.step(model, z, t, goal, noise, state)
    return (ahead if rests is None else torch.where(over_images(rests, z).bool(), z, ahead)), state


def prior(denoiser: Denoiser, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Samples of p(z_1) = N(0, alpha(1)² + sigma(1)²): where sampling starts. The generator must live on `device`."""
    return float(denoiser.schedule.prior_std()) * torch.randn(shape, generator=generator, device=device)


def uniform_times(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) equally spaced times from 1 to 0, float64; on a discrete schedule rounded to its grid.

    Raises:
        ValueError: more steps than a discrete schedule has.
    """
    if steps < 1 or (schedule.steps is not None and steps > schedule.steps):
        raise ValueError(f"cannot take {steps} steps: choose 1..{schedule.steps or 'any number'}")
    return schedule.on_grid(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def rollout_times(schedule: Schedule, t: Tensor, steps: int) -> Tensor:
    """(steps + 1, B) times, each image from its own t (B,) down to 0 in equal parts, float64.

    On a discrete schedule rounded to its grid, and never between t_min and 0, where no network was trained: an image that
    starts fewer grid points than `steps` above the data rests in some of them.
    """
    if steps < 1:
        raise ValueError(f"cannot take {steps} steps: choose 1 or more")
    parts = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=t.device).unsqueeze(1)
    times = schedule.on_grid(parts * t.to(torch.float64))
    times[:-1].clamp_(min=schedule.t_min)
    return times


def karras_times(schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """(steps + 1,) times at EDM's noise levels: (sigma/alpha)^(1/rho) equally spaced, then no noise at all, float64.

    Karras et al. 2022, eq. 5. The levels are kept within the schedule's own. The last time is the schedule's `t_clean`, which
    is below 0 where t = 0 still has noise: -inf on `VE`.
    """
    if steps < 1:
        raise ValueError(f"cannot take {steps} steps: choose 1 or more")
    reach = torch.tensor([1.0, schedule.t_min], dtype=torch.float64, device=schedule.device)
    most, least = (float(x) for x in torch.exp(-schedule.logsnr(reach).detach() / 2))
    ends = torch.tensor([min(sigma_max, most), max(sigma_min, least)], dtype=torch.float64) ** (1 / rho)
    sigma = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    times = schedule.t_of(-2 * sigma.log().to(schedule.device)).detach().cpu().clamp(0, 1)
    return torch.cat([times, times.new_tensor([schedule.t_clean])])


def _velocity(p: Prediction) -> Tensor:
    return p.noise - p.x0


def _straight(schedule: Schedule, z: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
    """z_s/r_s = z_t/r_t + (u_s - u_t) velocity, with r = alpha + sigma, u = sigma/r."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _at(schedule, t, z), _at(schedule, s, z)
    r_t, r_s = alpha_t + sigma_t, alpha_s + sigma_s
    return r_s * (z / r_t + (sigma_s / r_s - sigma_t / r_t) * velocity)


def _at(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    wide = t.to(torch.float64)
    return over_images(schedule.alpha(wide), z), over_images(schedule.sigma(wide), z)


SPACINGS.add("uniform_times", uniform_times, "uniform")
SPACINGS.add("karras_times", karras_times, "karras")
