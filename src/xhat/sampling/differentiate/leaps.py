"""Gradients by leaps: the end of a chain as a few long steps of the straight path, pinned to where the chain really went.

On the path of `Euler`, w = z/r with r = alpha + sigma moves by dw/du = v, v = noise_hat - x0_hat, so that a stretch of the
chain is w_j = w_k + ∫ v du. Each object here says which velocities of it have a gradient, and with which weights; the images
are the true chain's throughout, and only what is differentiated is shortened (Wang et al. 2026, Exploring the design space of
reward backpropagation for flow matching, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from xhat.registry import GRADIENTS
from xhat.sampling.chain import Chain
from xhat.sampling.differentiate.base import Differentiation
from xhat.sampling.samplers import straight
from xhat.tensors import over_images


@dataclass(frozen=True)
class _Path:
    """A chain that was run without gradient, in the coordinates of the straight path.

    Attributes:
        chain: the chain.
        visited: images at the times of some steps, by number, and at the end.
    """

    chain: Chain
    visited: dict[int, Tensor]

    @classmethod
    def of(cls, chain: Chain, numbers: Sequence[int]) -> "_Path":
        """Run it, and keep the images before these steps."""
        end, steps = chain.run(recorded=set(numbers))
        return cls(chain, {step.number: step.z for step in steps} | {chain.steps: end})

    def u(self, number: int) -> Tensor:
        """u = sigma/r at times[number], (B,) float64."""
        return straight(self.chain.model.schedule, self.chain.time(number))[1]

    def w(self, number: int) -> Tensor:
        """z/r there, on the true chain."""
        z = self.visited[number]
        return z / over_images(self._r(number), z)

    def image(self, number: int, w: Tensor) -> Tensor:
        """The true image there, with the gradient of w."""
        z = self.visited[number]
        return z + over_images(self._r(number), z) * (w - w.detach())

    def velocity(self, number: int, z: Tensor | None = None) -> Tensor:
        """v of the network there, with its gradient; z is the true image, or that with a gradient of its own."""
        p = self.chain.model(
            self.visited[number] if z is None else z, self.chain.time(number), checkpoint=self.chain.checkpoint
        )
        return p.noise - p.x0

    def _r(self, number: int) -> Tensor:
        return straight(self.chain.model.schedule, self.chain.time(number))[0]


def _discounted(z: Tensor, share: float) -> Tensor:
    """z, of whose gradient a share passes."""
    return z.detach() + share * (z - z.detach())


class _Leaps(Differentiation):
    """Two leaps, from step k to step j and from there to the end; k < j are two steps of the chain, chosen at random."""

    def require(self, steps: int) -> None:
        if steps < 2:
            raise ValueError(f"{type(self).__name__} leaps twice: the chain needs 2 steps or more, got {steps}")

    def _chosen(self, chain: Chain) -> tuple[int, int]:
        k, j = sorted(chain.uniform(chain.steps, "leaps").argsort()[:2].tolist())
        return k, j


@GRADIENTS.named("leap_align")
@dataclass(frozen=True)
class LeapAlign(_Leaps):
    """Two leaps of Euler's rule, w_j = w_k + (u_j - u_k) v(z_k) and w_n = w_j + (u_n - u_j) v(z_j), k < j at random.

    Liang et al. 2026 (LeapAlign, section 3), for any schedule. The second leap's network passes a share of the gradient on to
    the first. Images whose leaps miss the true chain count less: 1/(d_j + d_n), with d the mean absolute distance of the leap's
    image from the true one, at least `floor`; times 2 floor, so that a perfect leap counts once. A leap stands for all the
    steps that it skips, as if the network's gradient were the same in them: a bias that does not vanish with more steps.

    Args:
        coupling: share of the gradient through the second leap's network, 0 to 1.
        floor: of d, in units of w; None counts all images alike.
    """

    coupling: float = 0.3
    floor: float | None = 0.1

    def run(self, chain: Chain) -> Tensor:
        k, j = self._chosen(chain)
        n, path = chain.steps, _Path.of(chain, (k, j))
        middle = path.w(k) + over_images(path.u(j) - path.u(k), chain.start) * path.velocity(k)
        z = _discounted(path.image(j, middle), self.coupling)
        onward = over_images(path.u(n) - path.u(j), chain.start) * path.velocity(j, z)
        end = path.image(n, middle + onward)
        if self.floor is None:
            return end
        with torch.no_grad():
            missed = torch.stack([middle - path.w(j), path.w(j) + onward - path.w(n)])
            d = missed.flatten(2).abs().mean(2).clamp(min=self.floor).sum(0)
        return end.detach() + over_images(2 * self.floor / d, end) * (end - end.detach())


@GRADIENTS.register
@dataclass(frozen=True)
class Lagrange(_Leaps):
    """Two leaps, each the integral of the polynomial through `order` velocities of its own stretch: FlowBP-Lagrange.

    w_j = w_k + sum_i c_i v(z_i), c_i = ∫ l_i(u) du over the leap, l_i the Lagrange polynomials of evenly spread steps i of it,
    the first included; all of them are taken again with a gradient. With order 1 it is `LeapAlign(floor=None)`. The first
    network call of the second leap passes a share of the gradient on to the first leap; the others are at the true images.

    Args:
        order: velocities of a leap; a stretch of fewer steps has as many as steps.
        coupling: share of the gradient that passes from the second leap to the first, 0 to 1.
    """

    order: int = 3
    coupling: float = 0.1

    same_times = True

    def require(self, steps: int) -> None:
        super().require(steps)
        self._require(self.order, steps)

    def run(self, chain: Chain) -> Tensor:
        k, j = self._chosen(chain)
        n = chain.steps
        first, second = (self._support(a, b) for a, b in ((k, j), (j, n)))
        path = _Path.of(chain, (*first, *second))
        middle = path.w(k) + self._leap(path, first, j, None)
        z = _discounted(path.image(j, middle), self.coupling)
        return path.image(n, middle + self._leap(path, second, n, z))

    def _support(self, start: int, stop: int) -> list[int]:
        """Evenly spread steps of [start, stop), the first one included."""
        count = min(self.order, stop - start)
        return torch.linspace(start, stop - 1, count).round().long().tolist() if count > 1 else [start]

    @staticmethod
    def _leap(path: _Path, support: list[int], target: int, start: Tensor | None) -> Tensor:
        weights = integrals(torch.stack([path.u(i) for i in support]), path.u(support[0]), path.u(target))
        velocities = [path.velocity(i, start if i == support[0] else None) for i in support]
        return torch.stack([over_images(c, v) * v for c, v in zip(weights, velocities, strict=True)]).sum(0)


def integrals(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """∫ l_i(u) du from low to high (B,), of the Lagrange polynomials of points (m, B), (m, B) float64.

    By Gauss-Legendre quadrature with as many nodes as points, which is exact for polynomials of twice that degree.
    """
    nodes, weights = (torch.from_numpy(x).to(points) for x in leggauss(len(points)))
    u = low + (high - low) * (nodes[:, None] + 1) / 2
    found = []
    for i, own in enumerate(points):
        others = torch.cat([points[:i], points[i + 1 :]])[:, None]
        value = ((u - others) / (own - others)).prod(0)
        found.append((weights[:, None] * value).sum(0) * (high - low) / 2)
    return torch.stack(found)


@GRADIENTS.register
@dataclass(frozen=True)
class Bridge(Differentiation):
    """`Surrogate` with a bridge: `steps` random steps, of whose gradient a share also passes through one later network call.

    w_n = w_0 + sum_i (u_{i+1} - u_i) v(z_i), in which the chosen steps are taken again at the true images, each n/K times; but
    for one of them, j, not the first, whose image has the gradient of the chosen steps before it, times `coupling`. So a
    gradient passes through one Jacobian of the network at most: FlowBP-Bridge. Without coupling it is the sum of the direct
    effects alone, unbiased for that; with it one of the n(n - 1)/2 pairs of steps, of `Euler`'s rule.

    Args:
        steps: that have a gradient, 2 or more.
        coupling: share of the gradient through the network of step j, 0 to 1.
    """

    steps: int = 2
    coupling: float = 0.1

    def require(self, steps: int) -> None:
        self._require(self.steps, steps)
        if self.steps < 2:
            raise ValueError("Bridge joins two steps: choose Bridge(2) or more, or Surrogate(1)")

    def run(self, chain: Chain) -> Tensor:
        n = chain.steps
        chosen = sorted(chain.uniform(n, "surrogate").argsort()[: self.steps].tolist())
        joined = chosen[1 + int(chain.uniform(1, "bridge")[0] * (self.steps - 1))]
        path = _Path.of(chain, chosen)
        moved = torch.zeros_like(chain.start)
        for i in chosen:
            z = _discounted(path.image(i, moved), self.coupling) if i == joined else None
            step = over_images(path.u(i + 1) - path.u(i), chain.start) * path.velocity(i, z)
            moved = moved + n / self.steps * step
        return path.image(n, moved)
