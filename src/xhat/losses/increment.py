"""The experiment of regressing on the noise that was actually added in the last step, instead of on what is known of it."""

from dataclasses import replace

from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.gaussians import posterior, transition
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import STEP_NOISE, forward_step
from xhat.diffusion.weightings import Weighting, constant
from xhat.losses.denoising import Denoising
from xhat.losses.where import Where
from xhat.objective.draw import Draw
from xhat.registry import LOSSES
from xhat.tensors import over_images


@LOSSES.register
class Increment(Denoising):
    """weighting(logsnr(t)) · mean over pixels of (z_t - (alpha_t/alpha_s) z_s - y_hat)², s = t - 1/T, (B,): the step as drawn.

    z_s is drawn from q(z_s | z_t, x0) (Ho et al. 2020, eq. 6-7), so that (x0, z_s, z_t) are distributed as in the forward
    process, and y_hat is the prediction in STEP_NOISE space. Given z_t and x0 the increment's mean is STEP_NOISE: the
    expectation is that of Denoising(STEP_NOISE, weighting) plus weighting · `irreducible`, and so is
    the gradient's; only its variance is larger. Discrete schedules only.

    Args:
        weighting: as in `Denoising`.
        where: as in `Denoising`.

    Raises:
        ValueError: when called: the schedule is continuous and has no step.
    """

    def __init__(self, weighting: Weighting = constant, where: Where | None = None) -> None:
        super().__init__(STEP_NOISE, weighting, where=where)

    def weighted(self, denoiser: Denoiser, draw: Draw, weighting: Weighting) -> Tensor:
        _, added = last_step(denoiser.schedule, draw)
        _, per_noise = STEP_NOISE.coefficients(denoiser.schedule, draw.t.double())
        # Denoising's target is per_noise · noise: this is the noise that makes it the increment
        return super().weighted(denoiser, replace(draw, noise=added / over_images(per_noise, added)), weighting)

    @staticmethod
    def irreducible(schedule: Schedule, t: Tensor) -> Tensor:
        """Variance per pixel of the increment given z_t and x0, beta_t (alpha_t/alpha_s)² sigma_s²/sigma_t², (B,) float64.

        Nothing at t = 1/T, where z_s is x0 itself.
        """
        ratio, _, s = _step(schedule, t)
        return ratio**2 * transition(schedule, t, s).posterior_variance


def last_step(schedule: Schedule, draw: Draw) -> tuple[Tensor, Tensor]:
    """z_s ~ q(z_s | z_t, x0), s = t - 1/T, and the noise added from there, z_t - (alpha_t/alpha_s) z_s; both as x0.

    z_t is made of the draw's clean noise: input perturbation affects only the network's input.
    """
    ratio, t, s = _step(schedule, draw.t)
    x0 = draw.x0
    z = over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * draw.noise
    before = posterior(schedule, x0, z, t, s).sample(draw.normal("increment"))
    return before, z - over_images(ratio, z) * before


def _step(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha_t/alpha_s, t and s = t - 1/T in float64, (B,); the discrete schedule snaps both to its grid."""
    ratio, _ = forward_step(schedule, t.double())
    assert schedule.steps is not None
    return ratio, t.double(), t.double() - 1 / schedule.steps
