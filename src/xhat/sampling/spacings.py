"""The times of a chain's steps: equally spaced, from each image's own, at EDM's noise levels."""

from typing import Any

import torch
from torch import Tensor

from xhat.budgets import MOST_STEPS, require_at_most
from xhat.diffusion.schedules import Schedule
from xhat.registry import SPACINGS


def uniform_times(schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) equally spaced times from 1 to 0, float64; on a discrete schedule rounded to its grid.

    Raises:
        ValueError: more steps than a discrete schedule has.
    """
    require_at_most(MOST_STEPS, steps=steps)
    if steps < 1 or (schedule.steps is not None and steps > schedule.steps):
        raise ValueError(f"cannot take {steps} steps: choose 1..{schedule.steps or 'any number'}")
    return schedule.on_grid(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def rollout_times(schedule: Schedule, t: Tensor, steps: int) -> Tensor:
    """(steps + 1, B) times, each image from its own t (B,) down to 0 in equal parts, float64.

    On a discrete schedule rounded to its grid, and never between t_min and 0, where no network was trained: an image that
    starts fewer grid points than `steps` above the data rests in some of them.
    """
    require_at_most(MOST_STEPS, steps=steps)
    if steps < 1:
        raise ValueError(f"cannot take {steps} steps: choose 1 or more")
    parts = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=t.device).unsqueeze(1)
    times = schedule.on_grid(parts * t.to(torch.float64))
    times[:-1].clamp_(min=schedule.t_min)
    return times


def karras_times(schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """(steps + 1,) times at EDM's noise levels: (sigma/alpha)^(1/rho) equally spaced, then no noise at all, float64.

    Karras et al. 2022, eq. 5. The levels are kept within the schedule's own. The last time is the schedule's `t_clean`, which
    is below 0 where t = 0 still has noise: -inf on `VE`.
    """
    require_at_most(MOST_STEPS, steps=steps)
    if steps < 1:
        raise ValueError(f"cannot take {steps} steps: choose 1 or more")
    reach = torch.tensor([1.0, schedule.t_min], dtype=torch.float64, device=schedule.device)
    most, least = (float(x) for x in torch.exp(-schedule.logsnr(reach).detach() / 2))
    ends = torch.tensor([min(sigma_max, most), max(sigma_min, least)], dtype=torch.float64) ** (1 / rho)
    sigma = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    times = schedule.t_of(-2 * sigma.log().to(schedule.device)).detach().cpu().clamp(0, 1)
    return torch.cat([times, times.new_tensor([schedule.t_clean])])


def scheduler_times(schedule: Schedule, scheduler: Any) -> Tensor:
    """(n + 1,) times of the steps that a scheduler of diffusers takes after its `set_timesteps`, float64.

    They are where its own loop calls the network, and then where its last step ends: at the data, or at the first step of the
    table where `set_alpha_to_one` is False.

    Args:
        schedule: as `from_diffusers` has it.
        scheduler: of diffusers, with its steps set.

    Raises:
        ValueError: it calls the network twice at a time, as no rule here does.
    """
    if schedule.steps is not None:
        times = (torch.as_tensor(scheduler.timesteps).cpu().to(torch.float64) + 1) / schedule.steps
        config = scheduler.config
        first = config.get("set_alpha_to_one", True) is False or config.get("final_sigmas_type") == "sigma_min"
        end = float(first) / schedule.steps
        if not bool((times.diff() < 0).all()):
            name = type(scheduler).__name__
            raise ValueError(
                f"{name} comes to a timestep twice: take the steps of another, DDIMScheduler.from_config({name}'s config)"
            )
        return times if float(times[-1]) == end else torch.cat([times, times.new_tensor([end])])
    sigma = torch.as_tensor(scheduler.sigmas).cpu().to(torch.float64)
    times = schedule.t_of(2 * (torch.log1p(-sigma) - sigma.log()))
    return torch.where(sigma > 0, times, 0)


SPACINGS.add("uniform_times", uniform_times, "uniform")
SPACINGS.add("karras_times", karras_times, "karras")
