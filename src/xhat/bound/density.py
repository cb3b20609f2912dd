"""The pilot: which steps of a bound are worth a network call, and what of them is known without one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import counted
from xhat.bound.control import Control, between_cells, fit, image_features, noise_features
from xhat.bound.exact import evaluate
from xhat.bound.terms import Form
from xhat.denoiser import Condition, Denoiser

GROWTH = 1.12  # ratio of neighbouring cells: the first steps of a schedule differ most
UNIFORM = 0.01


@dataclass(frozen=True)
class Pilot:
    """The density and the control variate of an estimate, fixed before any image is measured, so that it is unbiased.

    Attributes:
        probability: of part 1..count, (count,), float64, positive, sum 1.
        control: what is known of each part without a network call.
        evaluations: network calls that the pilot took.
    """

    probability: Tensor
    control: Control
    evaluations: int = 0

    def draw(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Invert the distribution function at positions (n,) in [0, 1): part (n,), the place in it (n,), probability (n,)."""
        upper = self.probability.cumsum(0)
        index = torch.searchsorted(upper, position * upper[-1], right=True).clamp(max=len(upper) - 1)
        chance = self.probability[index]
        place = (1 - (upper[index] - position * upper[-1]) / chance).clamp(0, 1 - 1e-12)
        return index + 1, place, chance


def cells(count: int) -> Tensor:
    """The last part of each cell, (cells,) int64: single parts first, then widths that grow by GROWTH."""
    ends, end = [], 0
    while end < count:
        end = min(count, max(end + 1, int(end * GROWTH)))
        ends.append(end)
    return torch.tensor(ends)


@torch.no_grad()
def run_pilot(
    form: Form, denoiser: Denoiser, images: Tensor, cond: Condition | None, *, seed: int = 0, draws: int = 48, rows: int = 512
) -> Pilot:
    """p_i ∝ sqrt(E[rest_i²]), the best density for independent draws, where `rest` is what the control leaves; mixed with 1 %
    uniform. First `draws` network calls in each cell of neighbouring parts; then as many again, where they count.

    Args:
        form: the bound.
        denoiser: the model.
        images: other images than the ones to be measured, (N, ...).
        cond: their conditions.
        seed: of the pilot's draws.
        draws: network calls per cell in each round.
        rows: images per network call.
    """
    ends = cells(form.count)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    middle = (starts + 1 + ends).double() / 2
    generator = counted.generator(seed, "pilot")
    cell = torch.arange(len(ends)).repeat_interleave(draws)
    sample = _Sample(form, denoiser, images, cond, starts, ends, seed, rows)
    value, features = sample.at(cell, 0, generator)
    coefficients, left = fit(value, cell, features, len(ends))
    share = left.sqrt() * (ends - starts)
    if bool(share.sum() > 0):
        more = torch.multinomial(share / share.sum(), len(cell), replacement=True, generator=generator)
        own = sample.at(more, len(cell), generator)
        cell, value, features = torch.cat([cell, more]), torch.cat([value, own[0]]), torch.cat([features, own[1]])
        coefficients, left = fit(value, cell, features, len(ends))
    p = between_cells(left.sqrt(), middle, form.count)
    p = p / p.sum() if bool(p.sum() > 0) else torch.full_like(p, 1 / form.count)
    each = between_cells(coefficients, middle, form.count)
    return Pilot((1 - UNIFORM) * p + UNIFORM / form.count, Control(each[:, :3], each[:, 3:]), len(cell))


@dataclass(frozen=True)
class _Sample:
    """Values and features of parts on the pilot's images."""

    form: Form
    denoiser: Denoiser
    images: Tensor
    cond: Condition | None
    starts: Tensor
    ends: Tensor
    seed: int
    rows: int

    def at(self, cell: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random part of each cell (n,), on a random image: its value (n,) and features (n, 5)."""
        width = (self.ends - self.starts)[cell]
        index = self.starts[cell] + 1 + (torch.rand(len(cell), generator=generator, dtype=torch.float64) * width).long()
        index = torch.minimum(index, self.ends[cell])
        u = torch.rand(len(cell), generator=generator, dtype=torch.float64)
        chosen = torch.randint(len(self.images), (len(cell),), generator=generator)
        values, features = [], []
        for first in range(0, len(cell), self.rows):
            own = slice(first, min(first + self.rows, len(cell)))
            some = None if self.cond is None else {k: v[chosen[own].to(v.device)] for k, v in self.cond.items()}
            x0 = self.images[chosen[own].to(self.images.device)]
            noise = counted.normal(tuple(x0.shape), self.seed, "pilot noise", first=number + first, device=x0.device)
            value, of_noise = with_features(self.form, self.denoiser, x0, noise.to(x0.dtype), index[own], u[own], some)
            values.append(value)
            features.append(torch.cat([image_features(x0), of_noise], dim=1))
        return torch.cat(values).nan_to_num(), torch.cat(features)


def with_features(
    form: Form, denoiser: Denoiser, x0: Tensor, noise: Tensor, index: Tensor, u: Tensor, cond: Condition | None
) -> tuple[Tensor, Tensor]:
    """`evaluate` and the noise's features, on the CPU."""
    index, u = index.to(x0.device), u.to(x0.device)
    t = form.times(index, u)
    value = evaluate(form, denoiser, x0, noise, index, u, cond)
    return value.cpu(), noise_features(x0, noise, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))
