"""What a weighting is."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import Target

Weighting = Callable[[Tensor, Schedule], Tensor]
"""(logsnr (B,), schedule) -> weight (B,), multiplied into the loss as it stands."""

NO_SIGNAL = -40.0
"""Below this logsnr a weight is its value here: at alpha = 0 infinite weights meet errors that are 0, and the limit is 0."""

Function = TypeVar("Function", bound=Callable[..., Tensor])


def written_for(space: Target) -> Callable[[Function], Function]:
    """Mark a weighting as written for the loss in this space."""

    def mark(weighting: Function) -> Function:
        weighting.space = space  # type: ignore[attr-defined]
        return weighting

    return mark


def space_of(weighting: object) -> Target | None:
    """The space a weighting is written for; None if it says nothing."""
    return getattr(weighting, "space", None)


def name_of(weighting: object) -> str:
    """What a user calls it."""
    return getattr(weighting, "__name__", type(weighting).__name__)


def require_weighting(weighting: object) -> None:
    """Refuse what cannot be called with (logsnr, schedule).

    Raises:
        ValueError: with the way out.
    """
    if inspect.isclass(weighting):
        raise ValueError(f"{name_of(weighting)} is a class: give the weighting that it makes, {name_of(weighting)}(...)")
    called = weighting.forward if isinstance(weighting, nn.Module) else weighting
    try:
        inspect.signature(called).bind(None, None)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"{name_of(weighting)} is no weighting, which is called with (logsnr, schedule): {error}; write for example "
            "lambda logsnr, schedule: ..."
        ) from None
