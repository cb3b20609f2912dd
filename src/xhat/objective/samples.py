"""Clean samples as an objective takes them; and what stands in for them where terms start from pure noise."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xhat.diffusion.denoiser import Prediction
from xhat.objective.draw import FAR
from xhat.tensors import device_of


def look_at(x0: Tensor, *, normalised: bool = False) -> None:
    """Refuse what is not finite; say once what nobody else would: 0..255 trains, and badly.

    Args:
        x0: some samples.
        normalised: whether they are a user's values, made smaller as `fields(units=...)` says.

    Raises:
        ValueError: a value is not finite.
    """
    low, high = (float(v) for v in x0.detach().aminmax())
    if not math.isfinite(high - low):
        raise ValueError("x0 holds values that are not finite, which the network would see: fill them with numbers")
    if max(-low, high) > FAR and normalised:
        warnings.warn(
            f"normalised, the fields go from {low:.3g} to {high:.3g}: a few values lie far out; a map of them may help, "
            "units=standard(asinh()) or, of what is positive, units=standard(log())",
            stacklevel=4,
        )
    elif max(-low, high) > FAR:
        warnings.warn(
            f"the images are in [{low:.3g}, {high:.3g}]: schedules expect about [-1, 1], where noise of size 1 hides them; "
            "scale them, for example x / 127.5 - 1 if they are 8-bit values",
            stacklevel=4,
        )


def samples_of(x0: Tensor | None, shape: Sequence[int] | None, net: nn.Module) -> tuple[Tensor, bool]:
    """Clean samples, and whether there are any: else a shape without values, with which whoever computes gets NaN.

    Args:
        x0: the samples; None, or a tensor on the meta device, are none.
        shape: of these, where x0 has none.
        net: what stands in for them is on its device.

    Raises:
        ValueError: there is no shape either.
    """
    if x0 is not None and not x0.is_meta:
        return x0, True
    size = shape if x0 is None else x0.shape
    if size is None:
        raise ValueError("give clean samples x0; or, where all terms are of chains from pure noise, their shape=(B, ...) alone")
    return torch.full((), math.nan, device=device_of(net)).expand(tuple(size)), False


def no_samples() -> Prediction:
    """In place of the shared network call.

    Raises:
        ValueError: always.
    """
    raise ValueError("it reads the prediction at the drawn time, but there are no clean samples: give x0")
