"""Counter-based random numbers: every draw is a function of (seed, step, sample) alone, and no state is consumed.

A generator that is handed from call to call makes a result depend on everything drawn before: on the number of processes,
on gradient accumulation, on where a run was resumed. Here each draw gets a fresh generator whose seed is a hash of what
the draw is for. Noise is drawn in blocks of `BLOCK` samples: a process that needs samples k..k+B draws the blocks that
cover them, so that it sees what one process would have seen, at the cost of at most two partial blocks.
"""

import hashlib
import math
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


def paired(
    shape: tuple[int, ...], *key: float | str, first: int, per: int, correlation: float, device: torch.device | str = "cpu"
) -> Tensor:
    """As `normal`, but in each row of `per` samples the second is c · the first + sqrt(1 - c²) · its own, the fourth so with
    the third, and so on: each alone is standard normal, their correlation is c, and c = -1 negates. An odd row's last is alone.
    """
    if not correlation:
        return normal(shape, *key, first=first, device=device)
    both = normal((shape[0] + 1, *shape[1:]), *key, first=first - 1, device=device)  # with the one before
    before, own = both[:-1], both[1:]
    second = (first + torch.arange(shape[0], device=device)) % per % 2 == 1
    mixed = correlation * before + math.sqrt(1 - correlation**2) * own
    return torch.where(second.reshape(-1, *[1] * (len(shape) - 1)), mixed, own)
