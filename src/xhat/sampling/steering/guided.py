"""The shortest way to a steered sampler."""

from collections.abc import Callable

from torch import Tensor

from xhat.registry import STEERINGS
from xhat.sampling.samplers import DDIM, Sampler
from xhat.sampling.steering.base import Steering
from xhat.sampling.steering.dps import DPS


@STEERINGS.register
def guided_by(penalty: Callable[[Tensor], Tensor] | Steering, scale: float = 1.0, sampler: Sampler = DDIM()) -> Sampler:  # noqa: B008
    """A sampler whose samples are pulled down a penalty, by `DPS`; or steered in another way, which has its own scale.

    The same penalty as in training: `sample(denoiser, guided_by(total_variation, 0.5), z, times)`.

    Args:
        penalty: (B, ...) -> (B,), of clean images; or a steering such as MMPS(Linear(...)).
        scale: of its gradient.
        sampler: the rule of a step.

    Raises:
        ValueError: a scale beside a steering; a sampler that is none.
    """
    if not isinstance(sampler, Sampler):
        raise ValueError(f"guided_by goes around a sampler such as DDIM(), got {sampler!r}")
    if not isinstance(penalty, Steering):
        return DPS(penalty, scale).around(sampler)
    if scale != 1.0:
        raise ValueError(f"{type(penalty).__name__} has its own scale: give it there")
    return penalty.around(sampler)
