"""Decoders: how the lowest latent becomes data. They fix which latents there are, and the bound's reconstruction term."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.bound.eight_bit import DiscretizedGaussian, bin_index, softmax_decoder
from xhat.diffusion.denoiser import Denoiser, Prediction
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.variances import FixedLarge, Learned, Posterior
from xhat.tensors import image_sum, over_images

SHARP_LOGSNR = 14.0
Volume = Callable[[Tensor], Tensor]


class Decoder:
    """A decoder p(x0 | lowest latent).

    Attributes:
        calls_network: whether it is the network's own last step. Then the steps of a bound are i/T, i = 1..T, and the first
            one is the decoder; otherwise all steps are steps between latents.
    """

    calls_network: bool

    @abstractmethod
    def lowest(self, schedule: Schedule) -> float:
        """The time that the lowest step ends in."""

    @abstractmethod
    def require(self, schedule: Schedule, steps: float) -> None:
        """Raise ValueError where the decoder is not defined; the message names the term."""

    @abstractmethod
    def require_data(self, x0: Tensor) -> None:
        """Raise ValueError for data that it cannot decode."""


@dataclass(frozen=True)
class NetworkDecoder(Decoder):
    """The reverse step p(x0 | z_{1/T}) of the network, a Gaussian, read on 8-bit bins or as a density.

    Attributes:
        eight_bit: integrate over the bins of 8-bit images, DDPM's discretized Gaussian (Ho et al. 2020, eq. 13); otherwise
            the density itself, for latents and other floats: bits/dim are then those of a differential entropy.
        volume: of a density that is wanted in other units, v(x0): x0 (B, ...) -> log |dv/dx0| in nats, (B,).
    """

    eight_bit: bool
    volume: Volume | None = None
    calls_network = True

    def lowest(self, schedule: Schedule) -> float:
        return 0.0

    def require(self, schedule: Schedule, steps: float) -> None:
        at_data = schedule.sigma(torch.zeros((), dtype=torch.float64, device=schedule.device))
        if float(at_data) > 0:
            raise ValueError(
                f"reconstruction: the network's last step must end in the data, but {type(schedule).__name__} still has noise "
                f"at t = 0 (sigma {float(at_data):.1e}): use the SOFTMAX decoder, or a Discrete schedule"
            )
        if steps < 2:
            raise ValueError(
                "reconstruction: the network's last step is one of at least 2 steps: use more, or the SOFTMAX decoder"
            )
        if 1 / steps < schedule.t_min * (1 - 1e-9):
            raise ValueError(
                f"reconstruction: the last step starts at t = 1/{steps}, below the trained times (t_min {schedule.t_min:g}): "
                f"use at most {int(1 / schedule.t_min)} steps"
            )

    def require_data(self, x0: Tensor) -> None:
        if self.eight_bit:
            _require_bins(x0)

    def log_prob(self, denoiser: Denoiser, prediction: Prediction, x0: Tensor) -> Tensor:
        """log p(x0 | z) in nats per image, (B,), float64, from the prediction at the lowest latent.

        Raises:
            ValueError: the last step has variance 0.
        """
        if denoiser.schedule.t_min == 0 and isinstance(denoiser.variance, Posterior | FixedLarge | Learned):
            raise ValueError(
                f"reconstruction: {type(denoiser.schedule).__name__} has t_min = 0 and no noise there, so that beta-tilde, the "
                "variance of the network's last step, is 0: use t_min > 0, variance FORWARD, or the SOFTMAX decoder"
            )
        last = denoiser.step_back(prediction, torch.zeros_like(prediction.t))
        mean, log_variance, x0 = last.mean.double(), last.log_variance.double(), x0.double()
        if self.eight_bit:
            return DiscretizedGaussian(mean, log_variance).log_prob(x0)
        found = type(last)(mean, log_variance).log_prob(x0)
        return found if self.volume is None else found - self.volume(x0)


@dataclass(frozen=True)
class SoftmaxDecoder(Decoder):
    """VDM's p(x0 | z) ∝ N(z; alpha x0, sigma²) over the 256 levels of each pixel: no network (Kingma et al. 2021, sec. 3.1).

    The latent it reads is at the lowest noise of the schedule, or at logsnr 14 if the schedule goes further: there sigma is a
    ninth of a level, the decoder misses 0.0001 bits (0.006 at VDM's 13.3), and steps further down only add to the bound.
    """

    calls_network = False

    def lowest(self, schedule: Schedule) -> float:
        """The time of the latent that is decoded."""
        start = torch.tensor(schedule.t_min, dtype=torch.float64, device=schedule.device)
        if schedule.steps is not None or not float(schedule.logsnr(start).detach()) > SHARP_LOGSNR:
            return schedule.t_min
        return float(schedule.t_of(torch.full_like(start, SHARP_LOGSNR)).detach())

    def require(self, schedule: Schedule, steps: float) -> None:
        """Defined on every schedule: its latent always has noise."""

    def require_data(self, x0: Tensor) -> None:
        _require_bins(x0)

    def log_prob(self, schedule: Schedule, x0: Tensor, noise: Tensor) -> Tensor:
        """log p(x0 | z) in nats per image, (B,), for z = alpha x0 + sigma noise at `lowest`, in the dtype of x0."""
        t = torch.full((len(x0),), self.lowest(schedule), dtype=torch.float64, device=x0.device)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        z = over_images(alpha, x0) * x0 + over_images(sigma, x0) * noise
        return softmax_decoder(x0, z, alpha, sigma)


@dataclass(frozen=True)
class GaussianDecoder(Decoder):
    """The density p(x0 | z) = N(x0; z / alpha, (sigma / alpha)²) of floats: no network.

    It is what the latent says under a flat prior. Where the density of the data is smooth over sigma / alpha, nothing is lost:
    of Gaussian data of variance v it is (log(1 + s) - s / (1 + s)) / 2 nats a value, s = (sigma / alpha)² / v.

    Attributes:
        volume: as of `NetworkDecoder`.
    """

    volume: Volume | None = None
    calls_network = False

    def lowest(self, schedule: Schedule) -> float:
        """As of `SoftmaxDecoder`."""
        return SOFTMAX.lowest(schedule)

    def require(self, schedule: Schedule, steps: float) -> None:
        """Defined on every schedule: its latent always has noise."""

    def require_data(self, x0: Tensor) -> None:
        """Any floats."""

    def log_prob(self, schedule: Schedule, x0: Tensor, noise: Tensor) -> Tensor:
        """log p(x0 | z) in nats per sample, (B,), for z = alpha x0 + sigma noise at `lowest`."""
        t = torch.full((len(x0),), self.lowest(schedule), dtype=torch.float64, device=x0.device)
        each = -0.5 * (noise.square() + math.log(2 * math.pi) - over_images(schedule.logsnr(t), x0))
        found = image_sum(each)
        return found if self.volume is None else found - self.volume(x0)


DISCRETIZED = NetworkDecoder(eight_bit=True)
"""DDPM's decoder of 8-bit images: the network's last step, integrated over the bins."""

DENSITY = NetworkDecoder(eight_bit=False)
"""The network's last step as a density: for latents and other data without bins."""

SOFTMAX = SoftmaxDecoder()
"""VDM's decoder of 8-bit images: a softmax over the levels, at the lowest noise of the schedule."""


GAUSSIAN = GaussianDecoder()
"""The density of floats on a schedule in continuous time: no network, at the lowest noise of the schedule."""


def density_decoder(schedule: Schedule, volume: Volume | None = None) -> Decoder:
    """The decoder of floats: DENSITY on a discrete schedule, else GAUSSIAN; with a volume, the density of other units."""
    return GaussianDecoder(volume) if schedule.steps is None else NetworkDecoder(False, volume)


def default_decoder(schedule: Schedule) -> Decoder:
    """The decoder of the paper that the schedule comes from: DISCRETIZED when it is discrete, else SOFTMAX."""
    return SOFTMAX if schedule.steps is None else DISCRETIZED


def _require_bins(x0: Tensor) -> None:
    try:
        bin_index(x0)
    except ValueError as error:
        raise ValueError(
            f"reconstruction: {error}, and bits/dim by them; xhat.bound.DENSITY and GAUSSIAN measure floats"
        ) from None
