"""Classifier-free guidance, in whatever space the network predicts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xhat.data.batch import has_parts, has_rows
from xhat.diffusion.denoiser import Condition, Denoiser, Prediction
from xhat.registry import GUIDANCE

Null = Mapping[str, Any]
"""Name of a condition -> what stands for none of it: one row, which is put in place of every sample's."""

Predict = Callable[..., Sequence[Prediction]]
"""predict(condition, ...) -> a prediction for each, in one network call."""


class Branches(Protocol):
    """How the predictions with and without the condition are made: by how many calls, with which gradients."""

    def __call__(self, predict: Predict, told: Condition, untold: Condition) -> Sequence[Prediction]: ...


@GUIDANCE.register
@dataclass(frozen=True)
class BothBranches:
    """A gradient through both, from one network call of 2B samples: that of what is sampled."""

    def __call__(self, predict: Predict, told: Condition, untold: Condition) -> Sequence[Prediction]:
        return predict(told, untold)


@GUIDANCE.register
@dataclass(frozen=True)
class ConditionalBranch:
    """A gradient through the conditional branch alone; the other is a constant, taken by a call of its own without gradient.

    The samples are those of `BothBranches`. What is learned cannot push the unconditional prediction away, and the backward
    pass costs half as much.
    """

    def __call__(self, predict: Predict, told: Condition, untold: Condition) -> Sequence[Prediction]:
        with torch.no_grad():
            (constant,) = predict(untold)
        return *predict(told), constant


@GUIDANCE.register
@dataclass(frozen=True)
class Guidance:
    """How a chain inside of a loss is guided: FullChain(guidance=Guidance(5, through=ConditionalBranch())).

    Args:
        scale: 1 is none.
        null: as of `Guided`; None is the denoiser's own.
        through: which branches have a gradient.

    Raises:
        ValueError: the scale is no finite number.
    """

    scale: float
    null: int | Null | None = None
    through: Branches = BothBranches()

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int | float) and math.isfinite(self.scale)):
            raise ValueError(f"guidance has a finite scale such as 5, and 1 for none, got {self.scale!r}")

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser guided so."""
        return denoiser if self.scale == 1 else Guided(denoiser, self.scale, self.null, self.through)


class Guided(Denoiser):
    """unconditional + scale · (conditional - unconditional) (Ho & Salimans 2022, eq. 6), in one network call of 2B samples.

    All targets are affine in the network's output with the same coefficients at given z and t, so that guiding the raw
    output guides x0_hat and noise_hat alike. At scale 1 it is the denoiser itself.

    Args:
        denoiser: of a network that was trained with its condition dropped now and then.
        scale: 1 is no guidance.
        null: what stands for "no condition": name -> one row, of any shape, put in place of every sample's; a number alone is
            that of a "label". A tuple or a mapping of tensors is blanked by one of rows. None is the denoiser's own `null`.
            Conditions that are not named stay as they are in both halves, and so does what has no row per sample.
        through: which of the two have a gradient, BothBranches() or ConditionalBranch().

    Raises:
        ValueError: nothing says what stands for no condition; when called at another scale than 1 with no condition that can
            be blanked, or with a row of another shape than the condition's.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, null: int | Null | None = None, through: Branches = BothBranches()
    ) -> None:
        super().__init__(
            denoiser.net,
            denoiser.schedule,
            denoiser.target,
            variance=denoiser.variance,
            time_input=denoiser.time_input,
            scale_input=denoiser.scale_input,
            null={"label": null} if isinstance(null, int) else null if null is not None else denoiser.null,
        )
        self.scale, self.through = scale, through
        if self.null is None and scale != 1:
            raise ValueError(
                f"guidance of scale {scale:g} compares with and without a condition: say what stands for none with "
                "null={name: row}, here or where the Denoiser is made"
            )

    def forward(
        self, z: Tensor, t: Tensor, cond: Condition | None = None, *, checkpoint: bool = False, seen: Tensor | None = None
    ) -> Prediction:
        if self.scale == 1:
            return super().forward(z, t, cond, checkpoint=checkpoint, seen=seen)
        null = self.null or {}
        given = {name: value for name, value in (cond or {}).items() if value is not None}
        if not null.keys() & given.keys():
            raise ValueError(
                f"guidance of scale {self.scale:g} compares with and without a condition, and can blank {_names(null)}; "
                f"given is {_names(given)}: pass that as cond, say with null={{name: row}} what blanks another, or use scale 1"
            )
        rows = len(z)
        if not any(has_rows(given[name], rows) for name in null.keys() & given.keys()):
            raise ValueError(
                f"guidance blanks {_names(null.keys() & given.keys())} row by row, and it has no row for each of the {rows} "
                "samples: repeat it for all"
            )
        untold = {name: _blanked(name, value, null.get(name), rows) for name, value in given.items()}

        def predict(*conditions: Condition) -> Sequence[Prediction]:
            n = len(conditions)
            joint = {name: _joined([c[name] for c in conditions], rows) for name in given}
            shown = None if seen is None else torch.cat([seen] * n)
            many = super(Guided, self).forward(torch.cat([z] * n), torch.cat([t] * n), joint, checkpoint=checkpoint, seen=shown)
            return [many.rows(slice(i * rows, (i + 1) * rows)) for i in range(n)]

        conditional, unconditional = self.through(predict, given, untold)
        raw = torch.lerp(unconditional.raw, conditional.raw, self.scale)
        return Prediction(self, z, t, raw, conditional.variance_logits)


def _blanked(name: str, value: Any, null: Any, rows: int) -> Any:
    """The condition of all samples in the half that is not told it."""
    if null is None or not has_rows(value, rows):
        return value
    if isinstance(value, Mapping) and isinstance(null, Mapping):
        return {key: _blanked(f"{name}.{key}", part, null.get(key), rows) for key, part in value.items()}
    if isinstance(value, tuple) and isinstance(null, tuple) and len(value) == len(null):
        return tuple(_blanked(f"{name}.{i}", *both, rows) for i, both in enumerate(zip(value, null, strict=True)))
    if isinstance(value, list):
        return [null] * rows
    try:
        return torch.as_tensor(null, dtype=value.dtype, device=value.device).expand_as(value)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        row = tuple(value.shape[1:]) if isinstance(value, Tensor) else f"made of {len(value)} parts"
        found = tuple(null.shape) if isinstance(null, Tensor) else repr(null)
        raise ValueError(f'null["{name}"] is {found}, a row of that condition is {row}: give one such row') from None


def _joined(values: Sequence[Any], rows: int) -> Any:
    """One condition of several halves, one after the other."""
    first = values[0]
    if len(values) == 1 or not has_rows(first, rows):
        return first  # a flag, a number, one embedding for all
    if has_parts(first):
        if isinstance(first, Mapping):
            return {key: _joined([value[key] for value in values], rows) for key in first}
        return tuple(_joined(parts, rows) for parts in zip(*values, strict=True))
    return [row for value in values for row in value] if isinstance(first, list) else torch.cat(tuple(values))


def _names(of: Iterable[str]) -> str:
    return ", ".join(of) or "nothing"
