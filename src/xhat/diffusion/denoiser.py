"""The denoiser: a network, a schedule, a target and a reverse variance, read as one function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from xhat.diffusion.calling import call_network, is_diffusers, unwrapped
from xhat.diffusion.gaussians import Gaussian, posterior
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.sharded import gathered
from xhat.diffusion.targets import NOISE, X0, Target, decode_noise, decode_x0
from xhat.diffusion.time_inputs import OverTime, diffusers_index, time_itself
from xhat.diffusion.variances import POSTERIOR, Variance
from xhat.tensors import Once, over_images

Condition = Mapping[str, Any]
"""Keyword arguments of the network: tensors with a row a sample, as a rule; tuples and mappings of them, flags, numbers."""


class Prediction:
    """What the network's output says of an image: every view of it, each computed when first asked for.

    Attributes:
        raw: the network's output in the denoiser's own target space, (B, C, H, W).
        x0: the clean image x0_hat, (B, C, H, W).
        noise: the unit-variance noise, (B, C, H, W); alpha x0 + sigma noise = z.
        log_variance: of the reverse step to the previous grid point (discrete) or to `t_min`; broadcastable.
    """

    def __init__(self, denoiser: "Denoiser", z: Tensor, t: Tensor, raw: Tensor, logits: Tensor | None) -> None:
        self._denoiser, self.z, self.t, self.raw, self.variance_logits = denoiser, z, t, raw, logits

    def rows(self, index: Tensor | slice) -> "Prediction":
        """The prediction for some of the images."""
        logits = None if self.variance_logits is None else self.variance_logits[index]
        return Prediction(self._denoiser, self.z[index], self.t[index], self.raw[index], logits)

    def variance_alone(self) -> "Prediction":
        """The same prediction, of which only the variance passes gradients."""
        return Prediction(self._denoiser, self.z, self.t, self.raw.detach(), self.variance_logits)

    @Once
    def x0(self) -> Tensor:
        return decode_x0(self._denoiser.target, self._denoiser.schedule, self.z, self.t, self.raw)

    @Once
    def noise(self) -> Tensor:
        return decode_noise(self._denoiser.target, self._denoiser.schedule, self.z, self.t, self.raw)

    @Once
    def log_variance(self) -> Tensor:
        schedule = self._denoiser.schedule
        s = (self.t - 1 / schedule.steps) if schedule.steps else torch.full_like(self.t, schedule.t_min)
        return self._denoiser.variance.log_variance(schedule, self.z, self.t, s, self.variance_logits)

    def in_space(self, space: Target) -> Tensor:
        """The prediction as a value of any target, (B, C, H, W)."""
        if space == self._denoiser.target:
            return self.raw
        if space == X0:
            return self.x0
        if space == NOISE:
            return self.noise
        return space.of(self._denoiser.schedule, self.t, self.x0, self.noise)


class Pending(Prediction):
    """A prediction whose network call is made when it is first read.

    Args:
        denoiser: of the call.
        z: noisy images (B, C, H, W).
        t: their times (B,).
        call: makes the prediction.
    """

    def __init__(self, denoiser: "Denoiser", z: Tensor, t: Tensor, call: Callable[[], Prediction]) -> None:
        self._denoiser, self.z, self.t, self._call = denoiser, z, t, call
        self._learns = torch.is_grad_enabled()  # where the draw was made: whoever reads first may have switched it off

    @Once
    def _made(self) -> Prediction:
        with torch.set_grad_enabled(self._learns):
            return self._call()

    @property
    def raw(self) -> Tensor:  # type: ignore[override]
        return self._made.raw

    @property
    def variance_logits(self) -> Tensor | None:  # type: ignore[override]
        return self._made.variance_logits

    def rows(self, index: Tensor | slice) -> Prediction:
        return Pending(self._denoiser, self.z[index], self.t[index], lambda: self._made.rows(index))


class Denoiser(nn.Module):
    """A network read through a schedule and a target: z_t -> x0_hat, noise_hat, and the reverse step.

    The network is called as `net(scale·z, time_input(schedule, t), **cond)` and returns a tensor shaped like z, with 2C
    channels when the variance is LEARNED. Its output may be bf16; everything after it has the dtype of z. The time is float32
    whatever the dtype of z: bf16 has no 499.

    Args:
        net: any nn.Module of that signature; a model of diffusers is given its own timesteps.
        schedule: the noise schedule.
        target: what the network predicts.
        variance: of the reverse step, POSTERIOR, FORWARD, FIXED_LARGE or LEARNED.
        time_input: what the network sees of t; by default what the network names as its `time_input`, else t itself.
        scale_input: factor on z (B,); by default the network's own `scale_input`, the target's (EDM's c_in), else 1.
        null: what stands for a condition that is not told, by its name, as guidance needs it; see `Guided`.

    Attributes:
        decode: makes images of samples that are latents, for whoever shows them; None where samples are what is shown.
        units: gives the user's own values of normalised ones (B, C, ...), for penalties and samples; None of what is as it is.

    Raises:
        ValueError: the target cannot be inverted at an end of the schedule's trained times, or the network predicts another
            one or counts steps that the schedule does not have; the message names the way out.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        target: Target = NOISE,
        *,
        variance: Variance = POSTERIOR,
        time_input: OverTime | None = None,
        scale_input: OverTime | None = None,
        null: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        inside = unwrapped(net)
        own = getattr(inside, "target", target)
        if own != target:
            raise ValueError(f"{type(inside).__name__} predicts {own.name}, not {target.name}: use target {own.name}")
        self.net, self.schedule, self.target, self.variance = net, schedule, target, variance
        own_time: OverTime = getattr(inside, "time_input", diffusers_index if is_diffusers(net) else time_itself)
        own_scale: OverTime | None = getattr(inside, "scale_input", target.scale_input)
        self.time_input, self.scale_input = time_input or own_time, scale_input or own_scale
        self.null = None if null is None else dict(null)
        self.decode: Callable[[Tensor], Tensor] | None = None
        self.units: Callable[[Tensor], Tensor] | None = None
        _refuse_singular_ends(schedule, target, self.time_input)

    def forward(
        self, z: Tensor, t: Tensor, cond: Condition | None = None, *, checkpoint: bool = False, seen: Tensor | None = None
    ) -> Prediction:
        """One network call.

        Args:
            z: noisy images (B, C, H, W).
            t: their times (B,) in [t_min, 1].
            cond: keyword arguments of the network, for example {"label": (B,)}.
            checkpoint: recompute the network in the backward pass instead of keeping its activations.
            seen: what the network is shown in place of z, if it is not z (input perturbation); its output is read at z.

        Raises:
            ValueError: the network cannot be called so, or returns something else; the message names the way out.
        """
        shown = z if seen is None else seen
        scaled = shown if self.scale_input is None else over_images(self.scale_input(self.schedule, t), z) * shown
        time = self.time_input(self.schedule, t).to(torch.promote_types(z.dtype, torch.float32))
        call = partial(_call, self.net, scaled, time, cond or {})
        again = checkpoint and torch.is_grad_enabled()
        out = (recompute(call, use_reentrant=False) if again else call()).to(z.dtype)
        channels = z.shape[1] * self.variance.outputs
        if out.shape != (z.shape[0], channels, *z.shape[2:]):
            each = f"{channels} channels ({self.variance.outputs} per image channel for {type(self.variance).__name__})"
            expected = each if out.ndim > 1 and out.shape[1] != channels else (z.shape[0], channels, *z.shape[2:])
            raise ValueError(f"the network returned {tuple(out.shape)} for images {tuple(z.shape)}: expected {expected}")
        raw, logits = (out, None) if self.variance.outputs == 1 else out.chunk(2, dim=1)
        return Prediction(self, z, t, raw, logits)

    def given(self, cond: Condition | None) -> "Conditioned":
        """This denoiser under one condition: keyword arguments of the network, bound once for a whole chain of calls."""
        return Conditioned(self, cond)

    def reverse(self, z: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None) -> Gaussian:
        """p(z_s | z_t) for s < t: the posterior q(z_s | z_t, x0) at x0 = x0_hat, with the denoiser's own variance."""
        return self.step_back(self(z, t, cond), s)

    def step_back(self, prediction: Prediction, s: Tensor) -> Gaussian:
        """As `reverse`, from a prediction already made."""
        z, t = prediction.z, prediction.t
        mean = posterior(self.schedule, prediction.x0, z, t, s).mean
        return Gaussian(mean, self.variance.log_variance(self.schedule, z, t, s, prediction.variance_logits))


@dataclass(frozen=True)
class Conditioned:
    """A denoiser with its condition: what a step of a sampler sees of the model. No module: it registers nothing.

    Attributes:
        denoiser: read at each call, so that its parameters and its device are those of now; a `Guided` one guides here too.
        cond: keyword arguments of the network, for example {"label": (B,)}; None is none.
    """

    denoiser: Denoiser
    cond: Condition | None = None

    @property
    def schedule(self) -> Schedule:
        """The denoiser's."""
        return self.denoiser.schedule

    def __call__(self, z: Tensor, t: Tensor, *, checkpoint: bool = False) -> Prediction:
        """One network call at z (B, C, H, W) and t (B,), see `Denoiser.forward`."""
        prediction: Prediction = self.denoiser(z, t, self.cond, checkpoint=checkpoint)
        return prediction

    def reverse(self, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t) for s < t, see `Denoiser.reverse`."""
        return self.step_back(self(z, t), s)

    def step_back(self, prediction: Prediction, s: Tensor) -> Gaussian:
        """As `reverse`, from a prediction already made."""
        return self.denoiser.step_back(prediction, s)


def _call(net: nn.Module, z: Tensor, time: Tensor, cond: Condition) -> Tensor:
    """A network call; where the weights are split over processes, and nobody has gathered them yet, with all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):  # alone: nobody looks at each weight
        return call_network(net, z, time, cond)
    with gathered(net):
        return call_network(net, z, time, cond)


def _refuse_singular_ends(schedule: Schedule, target: Target, time_input: OverTime) -> None:
    ends = torch.tensor([schedule.t_min, 1.0], dtype=torch.float64, device=schedule.device)
    alpha, sigma = schedule.alpha(ends).detach(), schedule.sigma(ends).detach()
    a, b = (c.detach() for c in target.coefficients(schedule, ends))
    d = alpha * b - sigma * a
    x0_gain, noise_gain = (sigma / d).abs(), (alpha / d).abs()
    name = type(schedule).__name__
    if not bool(torch.isfinite(time_input(schedule, ends)).all()):
        raise ValueError(f"time_input is infinite at an end of {name}: use time_itself, or a schedule with finite logsnr")
    if not x0_gain[1] < 1e6:
        raise ValueError(
            f"target {target.name} cannot give x0 at t = 1, where {name} has alpha = {alpha[1]:.1e}: predict V, FLOW or X0, "
            "or use a schedule that keeps some signal (a finite logsnr_min, no zero-terminal rescaling)"
        )
    if not noise_gain[0] < 1e6:
        raise ValueError(
            f"target {target.name} cannot give the noise at t = {ends[0]:g}, where {name} has sigma = {sigma[0]:.1e}: predict "
            "V or FLOW, or keep away from the data (t_min > 0, a finite logsnr_max)"
        )
