"""The terms of the variational bound, in nats per image, float64.

-log p(x0) <= KL(q(z_1 | x0) ‖ p(z_1)) + sum_i E KL(q(z_s | z_t, x0) ‖ p(z_s | z_t)) - E log p(x0 | lowest latent)

(Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5). In continuous time the sum is an integral (Kingma et al. 2021, eq. 17).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.bound.decoders import Decoder, GaussianDecoder, NetworkDecoder, SoftmaxDecoder, default_decoder
from xhat.budgets import MOST_STEPS
from xhat.diffusion.denoiser import Denoiser, Prediction
from xhat.diffusion.gaussians import Gaussian, kl, transition
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.weightings import elbo
from xhat.tensors import image_sum, over_images

DEFAULT_STEPS = 1000


def bits_per_dim(nats: Tensor, x0: Tensor) -> Tensor:
    """nats per image (B,) as bits per dimension: nats / (log 2 · C·H·W)."""
    return nats / (math.log(2) * x0[0].numel())


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T = KL(q(z_1 | x0) ‖ p(z_1)), (B,), p(z_1) = N(0, prior_std²): N(0, I) on a variance-preserving schedule.

    It has no network in it: only a learned schedule gets a gradient from here.
    """
    x0 = x0.double()
    one = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
    alpha, sigma = over_images(schedule.alpha(one), x0), over_images(schedule.sigma(one), x0)
    q = Gaussian(alpha * x0, 2 * sigma.log())
    return kl(q, Gaussian(torch.zeros_like(x0), 2 * schedule.prior_std().log()))


def step_term(denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """KL(q(z_s | z_t, x0) ‖ p(z_s | z_t)), (B,), for the reverse variance of the denoiser (Ho et al. 2020, L_{t-1}).

    The two means differ by from_x0 · (x0 - x0_hat); that difference is taken in the space that the network predicts, where
    nothing common to both has to cancel.

    Args:
        denoiser: the model.
        prediction: of the network at z_t.
        x0: clean images (B, ...).
        noise: the noise in z_t.
        t: times (B,), float64.
        s: the next times (B,), s < t, not 0.
    """
    step = transition(denoiser.schedule, t, s)
    error = x0_error(denoiser, prediction, x0, noise, t)
    logits = None if prediction.variance_logits is None else prediction.variance_logits.double()
    log_variance = denoiser.variance.log_variance(denoiser.schedule, error, t, s, logits)
    q = Gaussian(over_images(step.from_x0, error) * error, over_images(step.posterior_variance.log(), error))
    return kl(q, Gaussian(torch.zeros_like(error), log_variance))


def rate_term(denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """½ (-d logsnr/dt) ‖noise - noise_hat‖², (B,): the bound per unit of t in continuous time (Kingma et al. 2021, eq. 17)."""
    logsnr = denoiser.schedule.logsnr(t)
    error = x0_error(denoiser, prediction, x0, noise, t) * over_images(torch.exp(logsnr / 2), x0.double())
    return elbo(logsnr, denoiser.schedule) * image_sum(error**2)


def x0_error(denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x0 - x0_hat up to sign, float64."""
    target, schedule = denoiser.target, denoiser.schedule
    error = (prediction.raw - target.of(schedule, t, x0, noise)).double()
    return error / over_images(target.gain(schedule, t).sqrt(), error)


class Form:
    """A bound as a sum over `count` parts, part i = 1..count needing one network call at a time within part i.

    Attributes:
        schedule: of the latents.
        count: number of parts.
        decoder: of the lowest latent.
    """

    schedule: Schedule
    count: int
    decoder: Decoder

    @abstractmethod
    def times(self, index: Tensor, u: Tensor) -> Tensor:
        """A time (B,) float64 in each part `index` (B,) of 1..count, from uniform u (B,) in [0, 1)."""

    @abstractmethod
    def part(self, denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """The value of each image's part `index` at the time t, (B,): the bound's diffusion is the sum of its means over u."""

    def outside(self, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The terms without a network call: prior (B,), and -log p(x0 | z) (B,), 0 if the decoder is part 1."""
        prior = prior_term(self.schedule, x0)
        if isinstance(self.decoder, SoftmaxDecoder | GaussianDecoder):
            return prior, -self.decoder.log_prob(self.schedule, x0, noise)
        return prior, torch.zeros_like(prior)


@dataclass(frozen=True)
class StepForm(Form):
    """Finitely many steps: L_0 .. L_{T-1} for a decoder of the network's own, else the KL terms above its latent."""

    schedule: Schedule
    count: int
    decoder: Decoder

    def at(self, index: Tensor) -> Tensor:
        """The time of latent `index`, 0..count; part i steps from latent i to latent i - 1."""
        lowest = self.decoder.lowest(self.schedule)
        return lowest + (1 - lowest) * index.double() / self.count

    def times(self, index: Tensor, u: Tensor) -> Tensor:
        return self.at(index)

    def index(self, t: Tensor) -> Tensor:
        """The part that a time (B,) lies in, int64; a float32 time of the grid belongs to the part that it ends."""
        lowest = self.decoder.lowest(self.schedule)
        return ((t.double() - lowest) / (1 - lowest) * self.count - 1e-3).ceil().long().clamp(1, self.count)

    def part(self, denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """As `Form.part`. Between two latents, where no bound has a step, it is the step from t down by a latent's distance.

        A step neither starts nor ends between the first latent and the data if the decoder is there.
        """
        decoder = self.decoder if isinstance(self.decoder, NetworkDecoder) else None
        # the KL of the decoder's step does not exist; its rows are asked for at the finite pair of step 2, and replaced
        start = torch.where(index == 1, self.at(index.clamp(min=2)), t) if decoder else t
        least = self.at(torch.full_like(index, int(decoder is not None)))
        end = torch.maximum(start - (1 - self.decoder.lowest(self.schedule)) / self.count, least)
        value = step_term(denoiser, prediction, x0, noise, start, end)
        rows = (index == 1).nonzero().squeeze(1)
        if decoder is None or not len(rows):
            return value
        return value.index_put((rows,), -decoder.log_prob(denoiser, prediction.rows(rows), x0[rows]))


@dataclass(frozen=True)
class ContinuousForm(Form):
    """The limit of infinitely many steps, an integral over t in `count` equal parts."""

    schedule: Schedule
    count: int
    decoder: Decoder

    def times(self, index: Tensor, u: Tensor) -> Tensor:
        low = self.decoder.lowest(self.schedule)
        return low + (1 - low) * (index.double() - 1 + u.double()) / self.count

    def part(self, denoiser: Denoiser, prediction: Prediction, x0: Tensor, noise: Tensor, index: Tensor, t: Tensor) -> Tensor:
        width = (1 - self.decoder.lowest(self.schedule)) / self.count
        return width * rate_term(denoiser, prediction, x0, noise, t)


def form_of(schedule: Schedule, steps: float | None = None, decoder: Decoder | None = None) -> Form:
    """The bound of a schedule.

    Args:
        schedule: of the latents.
        steps: T; by default the schedule's own, or 1000 in continuous time. math.inf is VDM's continuous-time bound.
        decoder: DISCRETIZED, DENSITY, GAUSSIAN or SOFTMAX; by default the one of `default_decoder`.

    Raises:
        ValueError: T is not possible on this schedule, or the decoder is not defined at its end.
    """
    decoder = decoder or default_decoder(schedule)
    steps = steps if steps is not None else schedule.steps or DEFAULT_STEPS
    if not steps >= 1 or (steps != math.inf and steps != int(steps)):
        raise ValueError(f"diffusion: the bound needs a whole number of steps, at least 1, or inf; got {steps}")
    if schedule.steps is None and MOST_STEPS < steps < math.inf:
        raise ValueError(f"diffusion: at most {MOST_STEPS:,} steps, got {steps:g}: use inf for continuous time")
    if schedule.steps is not None and steps != schedule.steps:
        raise ValueError(f"diffusion: this schedule has {schedule.steps} steps, and no bound for {steps}: leave steps out")
    if steps == math.inf and decoder.calls_network:
        raise ValueError("reconstruction: continuous time has no last step of the network: use SOFTMAX, or GAUSSIAN of floats")
    decoder.require(schedule, steps)
    if steps == math.inf:
        return ContinuousForm(schedule, DEFAULT_STEPS, decoder)
    # a grid's first latent is at t = 1/T: with a decoder outside of the network one step less is left
    outside = schedule.steps is not None and not decoder.calls_network
    return StepForm(schedule, int(steps) - outside, decoder)
