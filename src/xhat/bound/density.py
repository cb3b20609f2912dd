"""The pilot: which steps of a bound are worth a network call, and what of them is known without one."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xhat import rng
from xhat.bound.control import IMAGE, TINY, Control, between_cells, cells, fit, image_features
from xhat.bound.exact import predicted
from xhat.bound.pixels import edges, kinds, learned, moments
from xhat.bound.terms import Form, x0_error
from xhat.diffusion.denoiser import Condition, Denoiser
from xhat.distributed import ALONE, Shares
from xhat.tensors import over_images

UNIFORM = 0.01
LEAST_DRAWS, MOST_DRAWS = 48, 176  # of the pilot, per cell and round
GROUP = 4  # of the second round: noises e, -e, e', -e'
MOSTLY = 1.3  # times as much odd as even in the noise, and opposite noises pay more than strata do


@dataclass(frozen=True)
class Pilot:
    """The density and the control variate of an estimate, fixed before any image is measured, so that it is unbiased.

    Attributes:
        probability: of part 1..count, (count,), float64, positive, sum 1.
        control: what is known of each part without a network call.
        evaluations: network calls that the pilot took.
        opposite: whether the noises of an image's draws 1 and 2, 3 and 4, .. are: where most is odd in the noise.
    """

    probability: Tensor
    control: Control
    evaluations: int = 0
    opposite: bool = False

    def choose(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Invert the distribution function at positions (n,) in [0, 1): part (n,), the place in it (n,), probability (n,)."""
        upper = self.probability.cumsum(0)
        index = torch.searchsorted(upper, position * upper[-1], right=True).clamp(max=len(upper) - 1)
        chance = self.probability[index]
        place = (1 - (upper[index] - position * upper[-1]) / chance).clamp(0, 1 - 1e-12)
        return index + 1, place, chance


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
    evaluations: int = 8,
    rows: int = 512,
    shares: Shares = ALONE,
) -> Pilot:
    """p_i ∝ sqrt(E[rest_i²]), the best density for independent draws; mixed with 1 % uniform. `rest` is what the control
    leaves. Of its square, what does not change with the noise counts 1/evaluations, and what opposite noises cancel not at all.

    First `draws` network calls in each cell of neighbouring parts; then as many again, where they count, in groups of one
    image and part with noises e, -e, e', -e', which tell the odd part of `rest` from the even one. What comes out is frozen
    before an image is measured: whatever the positive density, the control and the noises' strata, no bias.

    Args:
        form: the bound.
        denoiser: the model.
        images: other images than the ones to be measured, (N, ...).
        cond: their conditions.
        seed: of the pilot's draws.
        draws: network calls per cell in each round, at least 2.
        evaluations: network calls that each image is to get.
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
    sample = _Sample(form, denoiser, images, cond, seed, rows, shares, len(ends), edges(images))
    first = sample.draw("first", starts, ends, torch.arange(len(ends)).repeat_interleave(draws), generator)
    value, sums = sample.learn(first)
    cell, features = first.cell, sample.features(first, sums)
    found = fit(value, cell, features, middle)
    left, opposite = found.left, False
    share = left.sqrt() * (ends - starts)
    if bool(share.sum() > 0):
        more = torch.multinomial(share / share.sum(), -(-len(cell) // GROUP), replacement=True, generator=generator)
        second = sample.draw("second", starts, ends, more.repeat_interleave(GROUP), generator, group=GROUP)
        own, of_own = sample.learn(second)
        sums = sums + of_own
        cell, value = torch.cat([cell, second.cell]), torch.cat([value, own])
        features = torch.cat([sample.features(draws, sums) for draws in (first, second)])
        found = fit(value, cell, features, middle)
        rest = own - (found.coefficients[second.cell] * features[-len(own) :]).sum(1)
        rest = (rest / found.left.sqrt().clamp(min=TINY)[second.cell]).reshape(-1, GROUP)
        odd, even = _halves(rest)
        opposite = bool(odd.mean() > MOSTLY * even.mean())
        left = found.left * _seen(2 * even if opposite else odd + even, more, len(ends), 1 / evaluations)
    p = between_cells(left.sqrt(), middle, form.count)
    p = p / p.sum() if bool(p.sum() > 0) else torch.full_like(p, 1 / form.count)
    each = between_cells(found.coefficients, middle, form.count)
    control = Control(each[:, :IMAGE], each[:, IMAGE], learned(*sample.edges, sums.sum(0)))
    return Pilot((1 - UNIFORM) * p + UNIFORM / form.count, control, len(cell), opposite)


def _halves(rest: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over the noise of what is odd and what is even in it, (groups,) each, from f at e, -e, e', -e', (groups, 4)."""
    plus, minus = rest[:, 0::2], rest[:, 1::2]
    return ((plus - minus) / 2).square().mean(1), ((plus + minus) / 2).var(1)


def _seen(noise: Tensor, cell: Tensor, count: int, between: float) -> Tensor:
    """What share of each cell's mean square (count,) an estimate sees, from the noise's part of it (groups,).

    The rest is between images and steps, and `between` is the share that is seen of that: all of it by one draw for an image,
    and the less, the more draws there are, which are spread over all steps. A cell with few groups is shrunk to the share of
    all, as if it had 8 of that.
    """
    total = torch.zeros(count, dtype=noise.dtype).index_add(0, cell, noise)
    share = (8 * noise.mean() + total) / (8 + torch.bincount(cell, minlength=count))
    return between + (1 - between) * share


@dataclass(frozen=True)
class _Draws:
    """Parts of the pilot's images.

    Attributes:
        purpose: names their noise.
        cell: of each, (n,).
        index: the part, (n,).
        u: the place in it, (n,).
        chosen: the image, (n,).
        group: neighbours that share all of these; pairs in it have opposite noises.
    """

    purpose: str
    cell: Tensor
    index: Tensor
    u: Tensor
    chosen: Tensor
    group: int


@dataclass(frozen=True)
class _Sample:
    """Values and features of parts on the pilot's images."""

    form: Form
    denoiser: Denoiser
    images: Tensor
    cond: Condition | None
    seed: int
    rows: int
    shares: Shares
    count: int  # of cells
    edges: tuple[Tensor, Tensor]  # between kinds of pixels

    def draw(
        self, purpose: str, starts: Tensor, ends: Tensor, cell: Tensor, generator: torch.Generator, group: int = 1
    ) -> _Draws:
        """A random part of each cell (n,), n a multiple of the group, on a random image."""
        width = (ends - starts)[cell]
        index = starts[cell] + 1 + (torch.rand(len(cell), generator=generator, dtype=torch.float64) * width).long()
        index = torch.minimum(index, ends[cell])
        u = torch.rand(len(cell), generator=generator, dtype=torch.float64)
        chosen = torch.randint(len(self.images), (len(cell),), generator=generator)
        index, u, chosen = (v[::group].repeat_interleave(group) for v in (index, u, chosen))
        return _Draws(purpose, cell, index, u, chosen, group)

    def learn(self, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Their values (n,), and what their pixels tell of errors, `moments` of each half of them, (2, cells, kinds, 4, 5)."""
        (values, spreads), halves = self.edges, _half(draws)
        size = 2 * self.count, (len(values) + 1) * (len(spreads) + 1)

        def measured(own: slice) -> tuple[Tensor, Tensor]:
            x0, noise, index, t = self._at(draws, own)
            prediction = predicted(self.denoiser, x0, noise, t, rows_of(self.cond, draws.chosen[own]))
            ratio = noise_ratio(self.denoiser, t)
            error = (x0_error(self.denoiser, prediction, x0, noise, t) / over_images(ratio, x0)).nan_to_num() ** 2
            cell = draws.cell[own] + self.count * halves[own]
            found = moments(error, kinds(x0, values, spreads), noise, cell, ratio, size)
            return self.form.part(self.denoiser, prediction, x0, noise, index, t).cpu(), found

        parts, sums = zip(*self.shares.map(measured, self._slices(draws)), strict=True)
        return torch.cat(parts).nan_to_num(), torch.stack(sums).sum(0).unflatten(0, (2, -1))

    def features(self, draws: _Draws, sums: Tensor) -> Tensor:
        """Of all of them, (n, IMAGE + 1): what pixels explain is learned from the half of the draws that they are not in."""
        halves = _half(draws)
        other = [learned(*self.edges, own) for own in sums.flip(0)]
        pixels = replace(other[0], slopes=torch.cat([own.slopes for own in other]))
        found = []
        for own in self._slices(draws):
            x0, noise, _, t = self._at(draws, own)
            cell = draws.cell[own] + self.count * halves[own]
            explained = pixels.explained(x0, noise, cell, noise_ratio(self.denoiser, t))
            found.append(torch.cat([image_features(x0), explained[:, None]], dim=1))
        return torch.cat(found)

    def _slices(self, draws: _Draws) -> list[slice]:
        count, group = len(draws.cell), draws.group
        rows = self.shares.part(count // group, self.rows // group) * group
        return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]

    def _at(self, draws: _Draws, own: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, noise, parts and times of some draws, on the images' device."""
        device = self.images.device
        x0 = self.images[draws.chosen[own].to(device)]
        key = (self.seed, "pilot noise", draws.purpose)
        noise = rng.stratified(tuple(x0.shape), *key, first=own.start, per=min(2, draws.group), opposite=True, device=device)
        index = draws.index[own].to(device)
        return x0, noise.to(x0.dtype), index, self.form.times(index, draws.u[own].to(device))


def _half(draws: _Draws) -> Tensor:
    """0 or 1, (n,): groups in turn."""
    return torch.arange(len(draws.cell)) // draws.group % 2


def noise_ratio(denoiser: Denoiser, t: Tensor) -> Tensor:
    """sigma/alpha (B,), finite where nothing is left of the image."""
    return (denoiser.schedule.sigma(t) / denoiser.schedule.alpha(t)).clamp(max=1e6)


def rows_of(cond: Condition | None, rows: Tensor | slice) -> Condition | None:
    """What the network is told of some of the images."""
    if cond is None:
        return None
    return {name: value[rows.to(value.device) if isinstance(rows, Tensor) else rows] for name, value in cond.items()}
