"""Penalties that a run is watched by, and not trained on."""

from collections.abc import Mapping

import torch

from xhat.config.build import build_penalty
from xhat.data.shape import DataShape
from xhat.errors import ConfigError, first_line
from xhat.losses.penalties import Penalty


def build_watched(watch: Mapping[str, str], shape: DataShape, *, decoded: bool) -> dict[str, Penalty]:
    """The penalties of a config's `watch`, by name.

    Args:
        watch: name -> expression.
        shape: of the samples; they are tried on two, but for what is decoded, whose size nobody knows.
        decoded: whether samples are latents, which a pipeline decodes first.

    Raises:
        ConfigError: one is no penalty of images alone, or has no value for each image.
    """
    found = {}
    for name, text in watch.items():
        try:
            found[name] = build_penalty(text, decoded=decoded)
            if not decoded and found[name](torch.zeros(2, *shape.sample)).shape != (2,):
                raise ValueError(f"{text} has no value for each image")
        except Exception as error:  # of a user's own code, too
            raise ConfigError(f"watch.{name}: {first_line(error)}") from error
    return found
