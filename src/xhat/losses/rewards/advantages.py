"""How much better a sample is than others of its group."""

from dataclasses import dataclass

from torch import Tensor

from xhat.registry import ADVANTAGES


@ADVANTAGES.register
@dataclass(frozen=True)
class Centred:
    """r - the mean of the others in the group: the policy gradient stays unbiased (Kool et al. 2019; RLOO)."""

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards (groups, n), n of 2 or more -> advantages of the same shape."""
        n = rewards.shape[1]
        return (rewards - rewards.mean(1, keepdim=True)) * (n / (n - 1))


@ADVANTAGES.register
@dataclass(frozen=True)
class Normalised:
    """(r - mean) / standard deviation within the group (GRPO, Shao et al. 2024; Flow-GRPO, Liu et al. 2025, eq. 4).

    Groups that differ little count as much as those that differ a lot, so that the gradient is another one than the reward's;
    its size does not depend on the reward's unit. A group whose rewards are all equal has none.
    """

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards (groups, n), n of 2 or more -> advantages of the same shape."""
        spread = rewards.std(1, keepdim=True)
        centred = rewards - rewards.mean(1, keepdim=True)
        return centred / spread.where(spread > 0, spread.new_ones(()))


NORMALISED = Normalised()
