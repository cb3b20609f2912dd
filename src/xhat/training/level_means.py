"""The training loss of each term by noise level: means of what the steps compute anyway."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from xhat.objective.draw import Draw
from xhat.objective.objective import Objective

LEVELS = tuple(range(-10, 11, 2))
"""The middles of the bins of logsnr, those of the held-out measurements among them; the outer ones are open."""


class LevelMeans:
    """Mean loss per bin of logsnr since it was last taken.

    The loss is that of the drawn samples, not importance-weighted: what a level's loss is, not how often it is drawn. Losses
    that belong to no drawn time (on a chain from pure noise) have no level.

    Args:
        objective: whose training calls are watched, until `close`.
        device: of the sums.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective, self.edges = objective, torch.tensor(LEVELS[:-1], dtype=torch.float32, device=device) + 1
        self.sums: dict[str, Tensor] = {}
        self.before, objective.watch = objective.watch, self

    def close(self) -> None:
        """Watch no more; who watched before does again."""
        self.objective.watch = self.before

    @torch.no_grad()
    def __call__(self, draw: Draw, values: Mapping[str, Tensor]) -> None:
        """Take in a call's values (B,) by term."""
        if self.before is not None:
            self.before(draw, values)
        own = {n: v for n, v in values.items() if self.objective.terms[n].loss.at_drawn_time}
        if not own:
            return
        logsnr = self.objective.denoiser.schedule.logsnr(draw.t).float()
        place = torch.bucketize(logsnr, self.edges)
        for name, value in own.items():
            both = torch.stack([value.detach().float() / draw.importance, torch.ones_like(draw.t, dtype=torch.float32)])
            sums = self.sums.setdefault(name, both.new_zeros(2, len(LEVELS)))
            sums.index_add_(1, place, both)

    def take(self, accelerator: Accelerator) -> dict[str, dict[str, float]]:
        """term -> logsnr of the bin's middle -> mean, over all processes; bins without a sample are left out."""
        found = {}
        for name in self.objective.terms:  # in this order on all processes
            sums = self.sums.get(name)
            if accelerator.num_processes > 1 and self.objective.terms[name].loss.at_drawn_time:
                sums = torch.zeros(2, len(LEVELS), device=self.edges.device) if sums is None else sums
                torch.distributed.all_reduce(sums)
            if sums is None:
                continue
            pairs = zip(LEVELS, *sums.tolist(), strict=True)
            found[name] = {str(level): total / count for level, total, count in pairs if count}
        self.sums = {}
        return {name: means for name, means in found.items() if means}
