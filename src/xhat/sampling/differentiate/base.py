"""What a way to differentiate a chain is."""

from torch import Tensor

from xhat.sampling.chain import Chain
from xhat.sampling.samplers import Sampler


class Differentiation:
    """A way to differentiate the end of a chain with respect to the network.

    Attributes:
        same_times: whether it needs one time for all images, as a chain from pure noise has it and a `Rollout` does not.
    """

    same_times = False

    def require(self, steps: int) -> None:
        """Refuse a chain of so many steps, if it is too short for it.

        Raises:
            ValueError: it is.
        """

    def require_sampler(self, sampler: Sampler) -> None:
        """Refuse a sampler that cannot be differentiated so.

        Raises:
            ValueError: it cannot.
        """

    def run(self, chain: Chain) -> Tensor:
        """The images at the end of the chain, (B, C, H, W), with the gradient that they have this way.

        Where a way takes the end several times, all of them, one after the other, (copies · B, C, H, W).
        """
        raise NotImplementedError(f"{type(self).__name__} must define run")

    def _require(self, count: int, steps: int) -> None:
        if not (isinstance(count, int) and 1 <= count <= steps):
            name = type(self).__name__
            raise ValueError(f"{name}({count}), but the chain takes {steps} steps: choose {name}(1) to {name}({steps})")


def require(differentiate: object, steps: int, sampler: Sampler) -> None:
    """Refuse what is no way to differentiate, one that a chain of so many steps is too short for, and one its sampler lacks.

    Raises:
        ValueError: it is; the message says what to write instead.
    """
    if not isinstance(differentiate, Differentiation):
        count = differentiate if isinstance(differentiate, int) and differentiate > 0 else 1
        got = f"the class {differentiate.__name__}" if isinstance(differentiate, type) else repr(differentiate)
        raise ValueError(f"differentiate says which steps have a gradient, got {got}: write Last({count}) or AllSteps()")
    differentiate.require(steps)
    differentiate.require_sampler(sampler)
