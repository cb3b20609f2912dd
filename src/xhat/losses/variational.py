"""The variational bound as a loss, its sum with the simple loss, and the variance that a learned schedule lowers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from xhat.bound.decoders import default_decoder
from xhat.bound.terms import StepForm, bits_per_dim, form_of, rate_term
from xhat.diffusion.denoiser import Condition, Denoiser, Prediction
from xhat.diffusion.gaussians import transition
from xhat.diffusion.schedules import Learned, Schedule
from xhat.diffusion.variances import Learned as LearnedVariance
from xhat.diffusion.weightings import elbo
from xhat.losses.denoising import Denoising
from xhat.objective.draw import Draw
from xhat.objective.terms import Loss
from xhat.registry import LOSSES
from xhat.tensors import over_images

Learns = Callable[[Prediction], Prediction]


@LOSSES.register
def everything(prediction: Prediction) -> Prediction:
    """The bound trains all that the network predicts."""
    return prediction


@LOSSES.register
def variance_only(prediction: Prediction) -> Prediction:
    """The bound trains the variance head alone: Improved DDPM's stop-gradient (Nichol & Dhariwal 2021, section 3.1).

    Raises:
        ValueError: the denoiser's variance is not learned, so that nothing would be trained.
    """
    if prediction.variance_logits is None:
        raise ValueError("the bound is to train the variance head, but the denoiser has none: use variance LEARNED")
    return prediction.variance_alone()


@LOSSES.register
class VariationalBound(Loss):
    """An unbiased estimate of the whole bound in bits/dim from the drawn t, (B,): prior + diffusion + reconstruction.

    On a discrete schedule T · L_{t-1}, where t = 1/T gives the discretized decoder's L_0 (Ho et al. 2020, eq. 5); on a
    continuous one ½ (-d logsnr/dt) ‖noise - noise_hat‖² and VDM's softmax decoder (Kingma et al. 2021, eq. 11-17). The
    terms without a network train a learned schedule's ends; on a fixed one they are constants.

    Args:
        learns: which part of the prediction the bound trains, `everything` or `variance_only`.

    Raises:
        ValueError: when called: data that are not 8-bit, or a variance to learn in continuous time, whose bound has none.
    """

    trains_variance = True

    def __init__(self, learns: Learns = everything) -> None:
        super().__init__()
        self.learns = learns

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        schedule, x0 = denoiser.schedule, draw.x0
        if not schedule.steps and (self.learns is variance_only or draw.prediction.variance_logits is not None):
            raise ValueError("continuous time has no reverse variance to learn: use linear_beta or cosine_beta")
        prediction = self.learns(draw.prediction)
        form = form_of(schedule, None if schedule.steps else math.inf)
        form.decoder.require_data(x0)  # at every step, not only at those that draw the decoder's
        if isinstance(form, StepForm):
            t, index = _snapped(schedule, draw.t), form.index(draw.t)
            diffusion = form.count * form.part(denoiser, prediction, x0, draw.noise, index, t)
        else:
            t = draw.t.double()
            rate = rate_term(denoiser, prediction, x0, draw.noise, t)
            diffusion = (1 - schedule.t_min) * rate * (t >= form.decoder.lowest(schedule))
        last = draw.noise if form.decoder.calls_network else draw.normal("decoder")
        return bits_per_dim(sum(form.outside(x0, last), start=diffusion), x0).to(x0.dtype)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        if self.learns is not everything or isinstance(denoiser.variance, LearnedVariance):
            return None
        schedule = denoiser.schedule
        if schedule.steps is None:
            drawn = schedule.t_of(logsnr.double()) >= default_decoder(schedule).lowest(schedule)
            return (1 - schedule.t_min) * elbo(logsnr, schedule) * drawn / math.log(2)
        # T ½ (from_x0 sigma/alpha)²/variance; the decoder's step as if it were a density
        t = _snapped(schedule, schedule.t_of(logsnr.double()).clamp(min=schedule.t_min))
        s = torch.where(t > schedule.t_min, (t - 1 / schedule.steps).clamp(min=schedule.t_min), torch.zeros_like(t))
        pixel = torch.zeros(len(t), 1, dtype=torch.float64, device=t.device)
        log_variance = denoiser.variance.log_variance(schedule, pixel, t, s, None).squeeze(1)
        gain = transition(schedule, t, s).from_x0 ** 2 * torch.exp(-schedule.logsnr(t) - log_variance)
        return (schedule.steps * gain / (2 * math.log(2))).to(logsnr.dtype)


def _snapped(schedule: Schedule, t: Tensor) -> Tensor:
    """Times (B,) float64, those of the grid that were rounded to float32 back on it."""
    near = schedule.on_grid(t.double())
    return torch.where((t - near).abs() * (schedule.steps or 1) < 1e-3, near, t.double())


@LOSSES.register
class Hybrid(Loss):
    """simple + beta · bound: a reconstruction error plus beta times the KL terms, (B,).

    With the defaults it is Improved DDPM's L_hybrid = L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, eq. 16), L_vlb in
    bits/dim, where the bound trains the variance head alone.

    Args:
        beta: factor on the bound.
        simple: the loss that trains the mean.
        learns: which part of the prediction the bound trains, `variance_only` or `everything`.
    """

    trains_variance = True

    def __init__(self, beta: float = 0.001, simple: Loss | None = None, learns: Learns = variance_only) -> None:
        super().__init__()
        self.beta, self.simple, self.bound = beta, simple or Denoising(), VariationalBound(learns)

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        total: Tensor = self.simple(denoiser, draw) + self.beta * self.bound(denoiser, draw)
        return total

    def parts(self) -> tuple[Loss, ...]:
        return (*self.simple.parts(), self.bound)

    def offset(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self.simple.offset(denoiser, draw)

    def density_part(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.simple.density_part(schedule, t)

    def noise_weight(self, denoiser: Denoiser, logsnr: Tensor) -> Tensor | None:
        simple = self.simple.noise_weight(denoiser, logsnr)
        if simple is None or self.bound.learns is variance_only:
            return simple
        bound = self.bound.noise_weight(denoiser, logsnr)
        if bound is None:
            return None
        total: Tensor = simple + self.beta * bound
        return total


@LOSSES.register
class ScheduleVariance(Loss):
    """The squared estimate of the diffusion term, (B,), (bits/dim)²; it trains nothing but the shape of a learned schedule.

    In continuous time the bound depends on the schedule's ends alone; in between, the schedule decides how much its estimate
    varies with t (Kingma et al. 2021, section 5.1 and appendix I.2). One more network call, with frozen weights; for
    example every fourth step.
    """

    def forward(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        schedule = denoiser.schedule
        if not isinstance(schedule, Learned):
            raise ValueError(f"ScheduleVariance trains a Learned schedule, {type(schedule).__name__} has nothing to learn")
        shape = {id(p) for p in schedule.shape_parameters()}
        rate = _Rate(denoiser)
        frozen = {name: p if id(p) in shape else p.detach() for name, p in rate.named_parameters()}
        nats: Tensor = torch.func.functional_call(rate, frozen, (draw.x0, draw.t, draw.noise, draw.cond))
        squared: Tensor = bits_per_dim(nats, draw.x0).to(draw.x0.dtype) ** 2
        return squared


class _Rate(nn.Module):
    """The diffusion rate as one module call, so that its parameters can be exchanged."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Condition | None) -> Tensor:
        schedule = self.denoiser.schedule
        z = over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * noise
        return rate_term(self.denoiser, self.denoiser(z, t, cond), x0, noise, t.double())
