"""Image estimates that run the sampler inside of the loss: from z_t down to the data, or from pure noise."""

from dataclasses import dataclass, field

from torch import Tensor

from xhat.budgets import require_at_most
from xhat.diffusion.denoiser import Denoiser
from xhat.objective.draw import Draw
from xhat.registry import ESTIMATES
from xhat.sampling.chain import Chain
from xhat.sampling.differentiate import Differentiation, Last, NoSteps, require
from xhat.sampling.guidance import Guidance
from xhat.sampling.sample import chain_of
from xhat.sampling.samplers import DDIM, Sampler
from xhat.sampling.spacings import rollout_times, uniform_times
from xhat.tensors import to_device


@dataclass(frozen=True)
class _Chain:
    """What both chains share.

    Args:
        sampler: the rule of a step.
        steps: network calls (twice as many for Heun).
        differentiate: how gradients pass: Last(K), AllSteps(), Surrogate(K) or another of `xhat.differentiate`.
        checkpoint: recompute each step in the backward pass, so that memory is one call's whatever `steps`.
        guidance: scale of classifier-free guidance in each step, by the denoiser's own `null`, with a gradient through both
            branches; or a `Guidance` that says otherwise. None is none.

    Raises:
        ValueError: more steps differentiated than taken, or none; when called: guidance without a condition, or without `null`.
    """

    sampler: Sampler = field(default_factory=DDIM)
    steps: int = 10
    differentiate: Differentiation = Last(1)
    checkpoint: bool = True
    guidance: float | Guidance | None = None

    calls_network = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"{type(self).__name__} needs a sampler first, for example DDIM(), got {self.sampler!r}")
        if not self.sampler.passes_gradients:
            raise ValueError(f"no gradient passes through {self.sampler}: in a loss take the sampler without guided_by")
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs steps >= 1, got {self.steps}")
        require_at_most(10_000, steps=self.steps)
        require(self.differentiate, self.steps, self.sampler)
        if self.differentiate == NoSteps():
            raise ValueError("a loss at the end of a chain needs a gradient: use Last(1) or AllSteps() in place of NoSteps()")
        _ = self._how

    @property
    def _how(self) -> Guidance:
        given = 1.0 if self.guidance is None else self.guidance
        return given if isinstance(given, Guidance) else Guidance(given)

    def chain(self, denoiser: Denoiser, draw: Draw) -> Chain:
        """The steps for the images of a draw, with its own randomness."""
        start, times = self._from(denoiser, draw)
        return chain_of(
            self._how.of(denoiser),
            self.sampler,
            start,
            times,
            checkpoint=self.checkpoint,
            cond=draw.cond,
            noise=lambda i: draw.normal("sampler", i),
            uniform=draw.uniform,
        )

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        return self.differentiate.run(self.chain(denoiser, draw))

    def _from(self, denoiser: Denoiser, draw: Draw) -> tuple[Tensor, Tensor]:
        """Where the chain starts, and its times."""
        raise NotImplementedError


@ESTIMATES.register
class Rollout(_Chain):
    """The image at the end of a few skipped steps from z_t: `steps` equal parts of each image's own t.

    With many steps a sample of the model given z_t instead of the mean that `OneStep` is.
    """

    at_drawn_time = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.differentiate.same_times:
            name = type(self.differentiate).__name__
            raise ValueError(f"{name} needs one time for all images: use it in FullChain, and AllSteps() in Rollout")

    def _from(self, denoiser: Denoiser, draw: Draw) -> tuple[Tensor, Tensor]:
        return draw.z, rollout_times(denoiser.schedule, draw.t, self.steps)


@ESTIMATES.register
class FullChain(_Chain):
    """A sample of the model: the whole generation process from pure noise, under the draw's condition.

    It does not depend on the drawn t, and so is neither importance-weighted nor weighted by noise level.
    """

    at_drawn_time = False

    def _from(self, denoiser: Denoiser, draw: Draw) -> tuple[Tensor, Tensor]:
        return self.start(denoiser, draw), uniform_times(denoiser.schedule, self.steps)

    @staticmethod
    def start(denoiser: Denoiser, draw: Draw) -> Tensor:
        """z_1, a sample of p(z_1) for each image of the draw."""
        return to_device(denoiser.schedule.prior_std(), draw.x0.device).to(draw.x0.dtype) * draw.normal("chain")
