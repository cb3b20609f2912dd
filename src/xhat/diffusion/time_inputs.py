"""What a network is shown of the time."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from xhat.diffusion.schedules import Schedule
from xhat.registry import TIME_INPUTS

OverTime = Callable[[Schedule, Tensor], Tensor]
"""(schedule, t (B,)) -> the number that the network is given, (B,)."""


@TIME_INPUTS.named("t")
def time_itself(schedule: Schedule, t: Tensor) -> Tensor:
    """t in [0, 1], as our networks expect it."""
    return t


@TIME_INPUTS.register
def log_sigma(schedule: Schedule, t: Tensor) -> Tensor:
    """EDM's c_noise = ln(sigma/alpha)/4 (Karras et al. 2022, table 1)."""
    return -schedule.logsnr(t) / 8


@TIME_INPUTS.register
def diffusers_index(schedule: Schedule, t: Tensor) -> Tensor:
    """The 0-based timestep that diffusers' networks expect: T t - 1. Discrete schedules only."""
    if schedule.steps is None:
        raise ValueError(
            "the timesteps of diffusers' networks count the steps of a discrete schedule: use Discrete.from_diffusers, or say "
            "with time_input what the network is given"
        )
    return (t * schedule.steps).round() - 1


@TIME_INPUTS.register
@dataclass(frozen=True)
class flow_timestep:
    """The timestep of diffusers' flow-matching models: steps · sigma(t), not rounded.

    Args:
        steps: the scheduler's num_train_timesteps.
    """

    steps: int = 1000

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.steps * schedule.sigma(t)
