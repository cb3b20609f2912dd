"""Which noise an image is paired with, of those that were drawn for a batch."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xhat.diffusion.times import Stratified, TimeSampler, Uncorrected
from xhat.objective.terms import Term
from xhat.registry import PAIRINGS

Pairing = Callable[[Tensor, Tensor], Tensor]
"""Samples x0 (B, ...) and as much standard normal noise -> the noise of each sample, the same noises in another order."""


@PAIRINGS.register
@dataclass(frozen=True)
class Immiscible:
    """The assignment of noise to samples with the least sum of squared distances, group by group of the batch.

    Li et al. 2024 (Immiscible diffusion, algorithm 1), which is minibatch optimal transport for flows (Tong et al. 2024,
    section 3.2): each image sees noise from its own part of space, so that less of what a noisy image could have been is mixed,
    and paths cross less. All noises together stay what they were; that of one image depends on its group, and given the image
    it is no standard normal. So the denoiser learned is another one, and its bound is no bound of the data.

    Args:
        group: samples that noises are exchanged among, those next to each other in the batch; a part of a batch that holds
            whole groups is paired as the whole batch is. The assignment takes group³ operations.

    Raises:
        ValueError: a group of one.
    """

    group: int = 64

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"immiscible exchanges noise in a group of 2 or more, got {self.group}")

    @torch.no_grad()
    def __call__(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The noise of each sample (B, ...): the rows of `noise` in another order."""
        from scipy.optimize import linear_sum_assignment  # takes a quarter of a second to load

        order = []
        for first in range(0, len(x0), self.group):
            own = slice(first, first + self.group)
            # of squared distances only the product differs between assignments
            cost = -(x0[own].flatten(1).double() @ noise[own].flatten(1).double().T)
            order.append(first + torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1]))
        return noise[torch.cat(order).to(noise.device)]


def warn_of_bounds(pairing: Pairing | None, times: TimeSampler, terms: Mapping[str, Term]) -> None:
    """One line for whoever trains on a bound with noise that depends on the data, or times that weigh it: it is none."""
    bounds = [name for name, term in terms.items() if term.loss.trains_variance]
    if isinstance(times, Uncorrected) and not isinstance(times.times, Stratified) and bounds:
        warnings.warn(
            f'the times are not corrected for, so that term "{bounds[0]}" is weighted by their density, and is no bound: draw '
            f"them as {type(times.times).__name__}(...) alone",
            stacklevel=3,
        )
    if pairing is not None and bounds:
        warnings.warn(
            f'with pairing the noise depends on the images, so that term "{bounds[0]}" is no bound of their likelihood: leave '
            "pairing out, or train on Denoising",
            stacklevel=3,
        )
