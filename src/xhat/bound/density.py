"""The pilot: which steps of a bound are worth a network call, and what of them is known without one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xhat import rng
from xhat.bound.control import IMAGE, TINY, Control, between_cells, fit, image_features, noise_features
from xhat.bound.exact import evaluate
from xhat.bound.terms import Form
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import ALONE, Shares

GROWTH = 1.12  # ratio of neighbouring cells: the first steps of a schedule differ most
UNIFORM = 0.01
LEAST_DRAWS, MOST_DRAWS = 48, 176  # of the pilot, per cell and round
GROUP = 4  # of the second round: noises e, -e, e', -e'


@dataclass(frozen=True)
class Pilot:
    """The density and the control variate of an estimate, fixed before any image is measured, so that it is unbiased.

    Attributes:
        probability: of part 1..count, (count,), float64, positive, sum 1.
        control: what is known of each part without a network call.
        evaluations: network calls that the pilot took.
        correlation: between the noises of an image's draws 1 and 2, 3 and 4, .., in [-1, 0].
    """

    probability: Tensor
    control: Control
    evaluations: int = 0
    correlation: float = 0.0

    def choose(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def pilot_draws(count: int, calls: int) -> int:
    """Draws per cell and round for a measurement of so many network calls: no more than those, within 48 to 176."""
    return max(LEAST_DRAWS, min(MOST_DRAWS, calls // (2 * len(cells(count)))))


@torch.no_grad()
def run_pilot(
    form: Form,
    denoiser: Denoiser,
    images: Tensor,
    cond: Condition | None,
    *,
    seed: int = 0,
    draws: int = LEAST_DRAWS,
    rows: int = 512,
    shares: Shares = ALONE,
) -> Pilot:
    """p_i ∝ sqrt(E[rest_i²]), the best density for independent draws; mixed with 1 % uniform. `rest` is what the control
    leaves, and what opposite noises cancel of its square is taken off.

    First `draws` network calls in each cell of neighbouring parts; then as many again, where they count, in groups of one
    image and part with noises e, -e, e', -e', which tell the odd part of `rest` from the even one (`_correlation`). What comes
    out is frozen before an image is measured: whatever the positive density, the control and the correlation, no bias.

    Args:
        form: the bound.
        denoiser: the model.
        images: other images than the ones to be measured, (N, ...).
        cond: their conditions.
        seed: of the pilot's draws.
        draws: network calls per cell in each round, at least 2.
        rows: images per network call.
        shares: of several processes, who makes which calls.

    Raises:
        ValueError: fewer draws: one has no spread.
    """
    if draws < 2:
        raise ValueError(f"the pilot needs at least 2 draws in each cell of steps, got {draws}")
    ends = cells(form.count)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    middle = (starts + 1 + ends).double() / 2
    generator = rng.generator(seed, "pilot")
    cell = torch.arange(len(ends)).repeat_interleave(draws)
    sample = _Sample(form, denoiser, images, cond, starts, ends, seed, rows, shares)
    value, features = sample.at(cell, "first", generator)
    found = fit(value, cell, features, middle)
    left, correlation = found.left, 0.0
    share = left.sqrt() * (ends - starts)
    if bool(share.sum() > 0):
        more = torch.multinomial(share / share.sum(), -(-len(cell) // GROUP), replacement=True, generator=generator)
        more = more.repeat_interleave(GROUP)
        own = sample.at(more, "second", generator, group=GROUP)
        cell, value, features = torch.cat([cell, more]), torch.cat([value, own[0]]), torch.cat([features, own[1]])
        found = fit(value, cell, features, middle)
        rest = (own[0] - (found.coefficients[more] * own[1]).sum(1)) / found.left.sqrt().clamp(min=TINY)[more]
        rest, of = rest.reshape(-1, GROUP), more[::GROUP]
        correlation = _correlation(rest)
        left = found.left * (1 + correlation * _odd_share(rest, of, len(ends)))
    p = between_cells(left.sqrt(), middle, form.count)
    p = p / p.sum() if bool(p.sum() > 0) else torch.full_like(p, 1 / form.count)
    each = between_cells(found.coefficients, middle, form.count)
    control = Control(each[:, :IMAGE], each[:, IMAGE:])
    return Pilot((1 - UNIFORM) * p + UNIFORM / form.count, control, len(cell), correlation)


def _halves(rest: Tensor) -> tuple[Tensor, Tensor]:
    """What is odd and what is even in the noise, (groups, 2) each: (f(e) -+ f(-e))/2, from f at e, -e, e', -e', (groups, 4)."""
    plus, minus = rest[:, 0::2], rest[:, 1::2]
    return (plus - minus) / 2, (plus + minus) / 2


def _correlation(rest: Tensor) -> float:
    """The best one between two draws' noises, from what is left (groups, 4) at the noises e, -e, e', -e'.

    If the odd part is linear in the noise and the even one quadratic, the correlation c turns the variance of the sum of two
    draws into 2 odd (1 + c) + 2 even (1 + c²). Its least is at c = -odd/(2 even), or at -1 where odd is over twice even.
    """
    odd, even = _halves(rest)
    linear, quadratic = float(odd.square().mean()), float(even.var(1).mean())
    if not linear > 0:
        return 0.0
    return -min(1.0, linear / max(2 * quadratic, TINY))


def _odd_share(rest: Tensor, cell: Tensor, count: int) -> Tensor:
    """The odd part's share of each cell's mean square, (count,), from what is left in its units, (groups, 4).

    A cell with few groups is shrunk to the share of all, as if it had 8 of that, and no share is believed to be over 0.9.
    """
    odd = _halves(rest)[0].square().mean(1)
    total = torch.zeros(count, dtype=odd.dtype).index_add(0, cell, odd)
    return ((8 * odd.mean() + total) / (8 + torch.bincount(cell, minlength=count))).clamp(max=0.9)


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
    shares: Shares

    def at(self, cell: Tensor, purpose: str, generator: torch.Generator, group: int = 1) -> tuple[Tensor, Tensor]:
        """A random part of each cell (n,), on a random image: its value (n,) and features (n, IMAGE + NOISE).

        Neighbours in a group, n a multiple of it, share their cell, their part and image, and pairs in it have opposite noises.
        """
        width = (self.ends - self.starts)[cell]
        index = self.starts[cell] + 1 + (torch.rand(len(cell), generator=generator, dtype=torch.float64) * width).long()
        index = torch.minimum(index, self.ends[cell])
        u = torch.rand(len(cell), generator=generator, dtype=torch.float64)
        chosen = torch.randint(len(self.images), (len(cell),), generator=generator)
        index, u, chosen = (v[::group].repeat_interleave(group) for v in (index, u, chosen))
        rows = self.shares.part(len(cell) // group, self.rows // group) * group

        def measured(first: int) -> tuple[Tensor, Tensor]:
            own = slice(first, min(first + rows, len(cell)))
            some = rows_of(self.cond, chosen[own])
            x0 = self.images[chosen[own].to(self.images.device)]
            key = (self.seed, "pilot noise", purpose)
            noise = rng.paired(tuple(x0.shape), *key, first=first, per=group, correlation=-1.0, device=x0.device)
            value, of_noise = with_features(self.form, self.denoiser, x0, noise.to(x0.dtype), index[own], u[own], some)
            return value, torch.cat([image_features(x0), of_noise], dim=1)

        values, features = zip(*self.shares.map(measured, range(0, len(cell), rows)), strict=True)
        return torch.cat(values).nan_to_num(), torch.cat(features)


def rows_of(cond: Condition | None, rows: Tensor | slice) -> Condition | None:
    """What the network is told of some of the images."""
    if cond is None:
        return None
    return {name: value[rows.to(value.device) if isinstance(rows, Tensor) else rows] for name, value in cond.items()}


def with_features(
    form: Form, denoiser: Denoiser, x0: Tensor, noise: Tensor, index: Tensor, u: Tensor, cond: Condition | None
) -> tuple[Tensor, Tensor]:
    """`evaluate` and the noise's features, on the CPU."""
    index, u = index.to(x0.device), u.to(x0.device)
    t = form.times(index, u)
    value = evaluate(form, denoiser, x0, noise, index, u, cond)
    return value.cpu(), noise_features(x0, noise, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))
