"""Classifier-free guidance, in whatever space the network predicts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xhat.diffusion.denoiser import Condition, Denoiser, Prediction


class Guided(Denoiser):
    """unconditional + scale · (conditional - unconditional) (Ho & Salimans 2022, eq. 6), in one network call of 2B images.

    All targets are affine in the network's output with the same coefficients at given z and t, so that guiding the raw
    output guides x0_hat and noise_hat alike. At scale 1 it is the denoiser itself.

    Args:
        denoiser: of a network that was trained with its condition dropped now and then.
        scale: 1 is no guidance.
        null: what stands for "no condition": name -> one row, which is put in place of every image's; a number is that of a
            "label". Conditions that are not named here stay as they are in both halves, and so does what has no row per image.

    Raises:
        ValueError: when called at another scale than 1 with no condition that can be blanked.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null: int | Mapping[str, Tensor | float]) -> None:
        super().__init__(
            denoiser.net,
            denoiser.schedule,
            denoiser.target,
            variance=denoiser.variance,
            time_input=denoiser.time_input,
            scale_input=denoiser.scale_input,
        )
        self.scale, self.null = scale, dict(null) if isinstance(null, Mapping) else {"label": null}

    def forward(
        self, z: Tensor, t: Tensor, cond: Condition | None = None, *, checkpoint: bool = False, seen: Tensor | None = None
    ) -> Prediction:
        if self.scale == 1:
            return super().forward(z, t, cond, checkpoint=checkpoint, seen=seen)
        given = {name: value for name, value in (cond or {}).items() if value is not None}
        if not self.null.keys() & given.keys():
            raise ValueError(
                f"guidance of scale {self.scale:g} compares with and without a condition, and can blank {_names(self.null)}; "
                f"given is {_names(given)}: pass that as cond, say with null={{name: row}} what blanks another, or use scale 1"
            )
        both = {name: self._doubled(name, value, len(z)) for name, value in given.items()}
        twice = None if seen is None else torch.cat([seen, seen])
        double = super().forward(torch.cat([z, z]), torch.cat([t, t]), both, checkpoint=checkpoint, seen=twice)
        conditional, unconditional = double.raw.chunk(2)
        logits = None if double.variance_logits is None else double.variance_logits.chunk(2)[0]
        return Prediction(self, z, t, torch.lerp(unconditional, conditional, self.scale), logits)

    def _doubled(self, name: str, value: Any, rows: int) -> Any:
        """The condition of both halves, the second one blanked."""
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
            return value  # a flag, a number, one embedding for all
        row = self.null.get(name)
        blank = value if row is None else torch.as_tensor(row, dtype=value.dtype, device=value.device).expand_as(value)
        return torch.cat([value, blank])


def _names(of: Mapping[str, object]) -> str:
    return ", ".join(of) or "nothing"
