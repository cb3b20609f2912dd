"""What runs on one page must have in common, and the noise levels that all of them have."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from xhat.config.build import build_penalty
from xhat.config.config import Config
from xhat.data.shape import DataShape
from xhat.errors import UsageError, first_line
from xhat.evaluation.denoising import LEVELS, reached
from xhat.pipelines.network import folder_of, latents_of, picture_of
from xhat.report.collect import QUANTITIES


def require_comparable(configs: Mapping[str, Config]) -> None:
    """Errors of x0 and distances to real images are of the data: other data, other scale.

    Args:
        configs: by the name of the run or of the change.

    Raises:
        UsageError: two configs have other data, or another size of them.
    """
    (first, reference), *others = configs.items()
    latents = {network: latents_of(network) for network in {config.network for config in configs.values()}}
    for name, config in others:
        for key in ("data", "image_size", "held_out"):
            mine, its = getattr(config, key), getattr(reference, key)
            if mine != its:
                raise UsageError(
                    f"{first} and {name} cannot be compared: {key} is {its} and {mine}, and errors on other images are on "
                    "another scale; write a report for each"
                )
        if latents[config.network] != latents[reference.network]:
            raise UsageError(
                f"{first} and {name} cannot be compared: one makes pictures, or latents of another autoencoder, and errors on "
                "those are on another scale; write a report for each"
            )


def require_penalties(penalties: Mapping[str, str], config: Config, shape: DataShape) -> None:
    """Refuse penalties that cannot be measured on samples.

    Args:
        penalties: name -> expression.
        config: of one of the runs.
        shape: of its samples.

    Raises:
        UsageError: a name that another quantity has, or an expression that has no value for each image.
    """
    folder = folder_of(config.network)
    images = torch.zeros(2, *(shape.sample if folder is None else picture_of(folder)))
    for name, text in penalties.items():
        if name in QUANTITIES:
            raise UsageError(f"penalties.{name}: {name} is measured already, choose another name")
        try:
            if build_penalty(text, decoded=folder is not None)(images).shape != (2,):
                raise ValueError(f"{text} has no value for each image")
        except Exception as error:  # of a user's own code, too
            raise UsageError(f"penalties.{name}: {first_line(error)}") from error


def standing_penalties(config: Config, shapes: Sequence[DataShape]) -> dict[str, str]:
    """What is measured of any samples, unless somebody says otherwise: total variation, of pictures.

    Args:
        config: of one of the runs.
        shapes: of their samples.
    """
    pictures = folder_of(config.network) is not None or all(shape.is_picture for shape in shapes)
    return {"total_variation": "total_variation"} if pictures else {}


def common_levels(folders: Sequence[Path]) -> tuple[float, ...]:
    """The noise levels that the schedules of all runs have; a run that has fewer than two of them does not count."""
    from xhat.runs.load import load

    levels = list(LEVELS)
    for folder in folders:
        with contextlib.suppress(ValueError):  # said where it is measured, and no reason to measure no other
            levels = reached(load(folder).denoiser.schedule, levels)
    return tuple(levels)
