"""What a network was given and training leaves alone: a run does not keep it, but knows it again by its checksums."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from xhat.errors import RunError
from xhat.tensors import bytes_of

NET = "net."
"""Where a denoiser has its network."""


@dataclass(frozen=True)
class Given:
    """What does not learn of a network that learns in part, such as a pretrained model under an adapter.

    Of a network that learns as a whole nothing is given, and a run keeps all of it.

    Attributes:
        sums: name in the network -> CRC-32 of a frozen parameter, or of a buffer, before training.
        frozen: those of the names that are parameters.
    """

    sums: Mapping[str, int]
    frozen: frozenset[str] = frozenset()

    @classmethod
    def of(cls, net: nn.Module) -> Self:
        """What is given of a network as it is now."""
        frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
        if not frozen:
            return cls({})
        learns = {name for name, p in net.named_parameters() if p.requires_grad}
        return cls({name: _sum(x) for name, x in net.state_dict().items() if name not in learns}, frozenset(frozen))

    def left_out(self, state: Mapping[str, Tensor], within: str = NET) -> dict[str, Tensor]:
        """A state without what is given; a buffer that has changed since is kept.

        Args:
            state: of a module that has the network in it.
            within: the network's place there.
        """
        given = {f"{within}{name}": name for name in self.sums}
        return {key: x for key, x in state.items() if key not in given or self._changed(given[key], x)}

    def put_back(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor], within: str = NET) -> dict[str, Tensor]:
        """A state made whole again by what a module has itself; see `left_out`."""
        names = {f"{within}{name}" for name in self.sums}
        return {**{name: x for name, x in own.items() if name in names}, **state}

    def require_same(self, sums: Mapping[str, int], kept: Mapping[str, Tensor], where: Any, within: str = NET) -> None:
        """Refuse to put what was learned on another network.

        Args:
            sums: of what the network was given that learned.
            kept: what the run has of it.
            where: the run, for the error.
            within: the network's place in `kept`.

        Raises:
            RunError: names the first tensor that differs.
        """
        for name in sorted(sums.keys() | self.sums.keys()):
            if f"{within}{name}" in kept or sums.get(name) == self.sums.get(name):
                continue
            there = (
                "is frozen here alone"
                if name not in sums
                else "learns here"
                if name not in self.sums
                else "has other values, or another precision"
            )
            raise RunError(
                f"{where} was trained on another network: {name}, which it was given, {there}: build this one from the same "
                "pretrained weights, with the same parts frozen"
            )

    def _changed(self, name: str, x: Tensor) -> bool:
        return name not in self.frozen and _sum(x) != self.sums[name]


def _sum(x: Tensor) -> int:
    return zlib.crc32(bytes_of(x))
