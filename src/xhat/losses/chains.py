"""Image estimates that run the sampler inside of the loss: from z_t down to the data, or from pure noise."""

from dataclasses import dataclass, field

from torch import Tensor

from xhat.diffusion.denoiser import Denoiser
from xhat.losses.backward import Backward, Last
from xhat.objective.draw import Draw
from xhat.registry import ESTIMATES
from xhat.sampling.samplers import DDIM, Sampler, rollout_times, uniform_times


@dataclass(frozen=True)
class _Chain:
    """What both chains share.

    Args:
        sampler: the rule of a step.
        steps: network calls (twice as many for Heun).
        grad_steps: K differentiates the last K steps (DRaFT-K), None all of them; or `RandomLast`, `Surrogate`, `ReFL`.
        checkpoint: recompute each step in the backward pass, so that memory is one call's whatever `steps`.

    Raises:
        ValueError: more steps differentiated than taken.
    """

    sampler: Sampler = field(default_factory=DDIM)
    steps: int = 10
    grad_steps: int | Backward | None = 1
    checkpoint: bool = True

    calls_network = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"{type(self).__name__} needs a sampler first, for example DDIM(), got {self.sampler!r}")
        if not isinstance(self.grad_steps, int | Backward | None):
            raise ValueError(f"grad_steps must be a number, None, RandomLast, Surrogate or ReFL, got {self.grad_steps!r}")
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs steps >= 1, got {self.steps}")
        self.backward.require(self.steps)

    @property
    def backward(self) -> Backward:
        """How gradients reach the network."""
        return self.grad_steps if isinstance(self.grad_steps, Backward) else Last(self.grad_steps)

    def _run(self, denoiser: Denoiser, draw: Draw, z: Tensor, times: Tensor) -> Tensor:
        return self.backward.run(denoiser, self.sampler, z, times, draw, self.checkpoint)


@ESTIMATES.register
class Rollout(_Chain):
    """The image at the end of a few skipped steps from z_t: `steps` equal parts of each image's own t.

    With many steps a sample of the model given z_t instead of the mean that `OneStep` is.
    """

    at_drawn_time = True

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self._run(denoiser, draw, draw.z, rollout_times(denoiser.schedule, draw.t, self.steps))


@ESTIMATES.register
class FullChain(_Chain):
    """A sample of the model: the whole generation process from pure noise, under the draw's condition.

    It does not depend on the drawn t, and so is neither importance-weighted nor weighted by noise level.
    """

    at_drawn_time = False

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self._run(denoiser, draw, self.start(denoiser, draw), uniform_times(denoiser.schedule, self.steps))

    @staticmethod
    def start(denoiser: Denoiser, draw: Draw) -> Tensor:
        """z_1, a sample of p(z_1) for each image of the draw."""
        return denoiser.schedule.prior_std().to(draw.x0) * draw.normal("chain")
