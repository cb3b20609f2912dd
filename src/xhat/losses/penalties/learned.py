"""Penalties that are networks: they are asked, and never trained along."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from xhat.losses.penalties.base import Penalty
from xhat.networks.digits import MNISTFeatures
from xhat.registry import PENALTIES

__all__ = ["frozen", "unreadable_digit"]


def frozen(module: nn.Module, read: Callable[[Any], Tensor] | None = None) -> Penalty:
    """Make a penalty of a network: a classifier, a reward model, a perceptual network. The gradient reaches the images only.

    The module itself is frozen, not a copy: its parameters stop requiring gradients, every call puts it in evaluation mode
    and on the images' device and dtype. What is returned is a plain function, so a module that keeps it does not own the
    network: no optimizer, checkpoint, `.train()` or DDP wrapper sees it. Pass `copy.deepcopy(module)` to go on training it.

    Args:
        module: called as module(images).
        read: its output -> (B,), for example `lambda logits: -logits.log_softmax(-1)[:, 3]` for "looks like class 3", or
            `lambda reward: -reward[:, 0]`: a penalty is what should become small.

    Raises:
        ValueError: what comes out is not (B,), or (B, 1) without `read` (at the call).
    """
    module.requires_grad_(False)

    def penalty(images: Tensor) -> Tensor:
        output = module.eval().to(images.device, images.dtype)(images)
        value = output if read is None else read(output)
        if read is None and isinstance(value, Tensor) and value.shape == (len(images), 1):
            value = value[:, 0]
        if not isinstance(value, Tensor) or value.shape != (len(images),):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"a frozen {type(module).__name__} gave {got} instead of one value per image, ({len(images)},): pass read=, a "
                "function of its output, for example read=lambda logits: -logits.log_softmax(-1)[:, 3]"
            )
        return value.to(images.dtype)  # autocast may have made it bf16

    return penalty


@cache
def _digit_reader() -> Penalty:
    network = MNISTFeatures.trained()
    return frozen(network, lambda features: -network.head(features).log_softmax(-1).amax(-1))


@PENALTIES.register
def unreadable_digit(images: Tensor) -> Tensor:
    """-log of the largest class probability, in nats, by the shipped MNIST network: 0 for a digit read with certainty.

    At most log 10. It tells digits from what lies between them, not from what is no digit: the network reads white noise
    with certainty, so this needs the base term beside it. FID on MNIST and "digits read" use the same network: a model trained
    on this is evaluated there with the network it was optimised against, so look at other figures as well.

    Args:
        images: (B, 1, 28, 28).

    Raises:
        ValueError: any other size.
    """
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"unreadable_digit reads grey images (B, 1, 28, 28), got {tuple(images.shape)}")
    return _digit_reader()(images)
