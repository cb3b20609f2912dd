"""Counter-based random numbers: every draw is a function of (seed, step, sample) alone, and no state is consumed.

A generator that is handed from call to call makes a result depend on everything drawn before: on the number of processes,
on gradient accumulation, on where a run was resumed. Here each draw gets a fresh generator whose seed is a hash of what
the draw is for. Noise is drawn in blocks of `BLOCK` samples: a process that needs samples k..k+B draws the blocks that
cover them, so that it sees what one process would have seen, at the cost of at most two partial blocks.
"""

import hashlib
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

BLOCK = 32


@dataclass(frozen=True)
class Shard:
    """Which samples of the global batch a call holds: `first`, ..., `first + B - 1` of `total`.

    Attributes:
        first: see above.
        total: samples whose times are drawn together.
        before: samples of the same step that earlier calls had drawn, where nobody said how many there would be in all.
    """

    first: int
    total: int
    before: int = 0

    @property
    def number(self) -> int:
        """Of the first sample in its step: what its randomness is a function of."""
        return self.before + self.first


def generator(*key: float | str | Tensor, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator whose seed is a 63-bit hash of `key`, for example (seed, "times", step).

    A whole number is the same key whatever its type: 3, 3.0, NumPy's and PyTorch's.
    """
    digest = hashlib.blake2b(repr(tuple(map(_plain, key))).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _plain(key: float | str | Tensor) -> float | str:
    if type(key) is str or type(key) is int:  # nearly all are, and asking for more takes longer than the hash
        return key
    value = key.item() if isinstance(key, Tensor) else key
    return int(value) if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()) else value


def normal(shape: tuple[int, ...], *key: float | str, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal samples number `first`, ..., `first + shape[0] - 1` of the stream named by `key`, float32."""
    count, *image = shape
    blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
    drawn = torch.empty(len(blocks) * BLOCK, *image, device=device)
    for place, block in enumerate(blocks):
        drawn[place * BLOCK : (place + 1) * BLOCK].normal_(generator=generator(*key, block, device=device))
    start = first - blocks.start * BLOCK
    return drawn[start : start + count]


def stratified(
    shape: tuple[int, ...], *key: float | str, first: int, per: int, opposite: bool = False, device: torch.device | str = "cpu"
) -> Tensor:
    """As `normal`, each alone standard normal, but the samples of a row of `per` lie apart: their mean of a sum of functions of
    single numbers scatters less than that of independent samples.

    Of each number one sample lies in each of `per` parts of equal probability (Latin hypercube sampling, McKay et al. 1979):
    a cyclic shift for each number says in which, and where in it is independent. Neighbours are in parts far apart. `opposite`
    negates the second of two, the fourth, and so on, and has the pairs' sizes lie apart. An odd row's last is alone.
    """
    number = first + torch.arange(shape[0], device=device)
    row, place = number // per, number % per
    size, group = (-(-per // 2), place // 2) if opposite else (per, place)

    def drawn(which: Tensor, purpose: str) -> Tensor:
        low, high = int(which[0]), int(which[-1]) + 1
        return normal((high - low, *shape[1:]), *key, purpose, first=low, device=device)[which - low].double()

    def over(x: Tensor) -> Tensor:
        return x.reshape(-1, *[1] * (len(shape) - 1))

    own = row * size + group
    part = (torch.special.ndtr(drawn(row, "shift")) * size).floor() + over(_apart(size).to(device)[group])
    position = (part % size + torch.special.ndtr(drawn(own, "within"))) / size
    sign = torch.where(drawn(own, "sign") < 0, -1.0, 1.0) * over(2.0 * (place % 2) - 1) if opposite else 1.0
    found: Tensor = sign * torch.special.ndtri((1 - position) / 2 if opposite else position)
    return found.float()


def _apart(n: int) -> Tensor:
    """0..n-1 in an order whose neighbours are far apart: that of the van der Corput sequence."""
    turned = [int(f"{k:032b}"[::-1], 2) for k in range(n)]
    return torch.tensor(turned).argsort().argsort()
