"""The bound of each image with every step summed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.bound.decoders import Decoder
from xhat.bound.terms import Form, StepForm, bits_per_dim, form_of
from xhat.diffusion.denoiser import Condition, Denoiser, Prediction
from xhat.tensors import over_images


@dataclass(frozen=True)
class Bound:
    """The variational bound on -log2 p(x0) per dimension, term by term, each (B,) float64.

    Attributes:
        prior: L_T, from what is left of x0 at t = 1.
        diffusion: the sum of the KL terms between latents, or their integral.
        reconstruction: L_0, the decoder's.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def bits_per_dim(self) -> Tensor:
        """The sum of the three."""
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    steps: float | None = None,
    decoder: Decoder | None = None,
    cond: Condition | None = None,
    seed: int = 0,
    noise: Callable[[int], Tensor] | None = None,
) -> Bound:
    """The T-step bound of each image: T network calls, one draw of noise in each; no clipping of x0_hat.

    Args:
        denoiser: the model.
        x0: images (B, C, H, W), 8-bit values scaled to [-1, 1]; float64 images are computed in float64.
        steps: T; by default the schedule's own, or 1000 on a continuous schedule.
        decoder: DISCRETIZED (default of discrete schedules), SOFTMAX (default of continuous ones), or for floats DENSITY
            and GAUSSIAN, on discrete and on continuous schedules.
        cond: keyword arguments of the network; the bound is then that of p(x0 | cond).
        seed: of the noise, which depends on (seed, step, image) alone.
        noise: unit-variance noise shaped like x0 for each step 1..T and, as step 0, for the decoder, instead of a draw.

    Raises:
        ValueError: data or decoder that do not fit, or a term that is not finite; the message names it.
    """
    form = form_of(denoiser.schedule, steps, decoder)
    if not isinstance(form, StepForm):
        raise ValueError("diffusion: an integral has no sum over its steps: use estimate_bound, or a whole number of steps")
    form.decoder.require_data(x0)

    def drawn(step: int) -> Tensor:
        return rng.normal(tuple(x0.shape), seed, "bound", step, device=x0.device).to(x0.dtype)

    noise = noise or drawn
    prior, reconstruction = form.outside(x0.double(), noise(0).double())
    diffusion = torch.zeros_like(prior)
    for i in range(1, form.count + 1):
        index = torch.full((len(x0),), i, device=x0.device)
        value = evaluate(form, denoiser, x0, noise(i), index, torch.zeros_like(prior), cond)
        if i == 1 and form.decoder.calls_network:
            reconstruction = value
        else:
            diffusion = diffusion + value
    return require_finite(*(bits_per_dim(nats, x0) for nats in (prior, diffusion, reconstruction)))


def evaluate(
    form: Form, denoiser: Denoiser, x0: Tensor, noise: Tensor, index: Tensor, u: Tensor, cond: Condition | None
) -> Tensor:
    """Part `index` (B,) of each image's bound in nats, (B,): one network call, at the place u (B,) in the part."""
    t = form.times(index, u)
    return form.part(denoiser, predicted(denoiser, x0, noise, t, cond), x0, noise, index, t)


def predicted(denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Condition | None) -> Prediction:
    """What the network says of x0 with this noise at the times t (B,)."""
    schedule = denoiser.schedule
    z = over_images(schedule.alpha(t), x0) * x0 + over_images(schedule.sigma(t), x0) * noise
    found: Prediction = denoiser(z, t, cond)
    return found


def require_finite(prior: Tensor, diffusion: Tensor, reconstruction: Tensor) -> Bound:
    """The three terms as a Bound.

    Raises:
        ValueError: one of them is not finite; named.
    """
    for name, value in {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction}.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            hint = {
                "prior": "does the schedule end in noise? sigma(1) must not be 0",
                "diffusion": "the network's output, or its variance, is not finite or far too large",
                "reconstruction": "the network's output at the lowest noise is not finite or far too large",
            }[name]
            raise ValueError(f"{name}: not finite for {bad} of {len(value)} images: {hint}")
    return Bound(prior, diffusion, reconstruction)
