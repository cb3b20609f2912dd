"""What samples of a run are told: prompts of the command line, or what the data are told."""

from pathlib import Path
from typing import NamedTuple

from xhat.commands.actions.real_images import conditions_of, real_images
from xhat.data.captions import read_prompts
from xhat.diffusion.denoiser import Condition
from xhat.errors import UsageError
from xhat.pipelines.network import home_of
from xhat.runs.load import TrainedRun
from xhat.tensors import device_of

UNPROMPTED = 64
"""Samples of a run that is told no prompts, where nobody says how many."""


class Asked(NamedTuple):
    """What is to be drawn.

    Attributes:
        samples: how many.
        cond: what they are told, in turn; None is nothing beside classes.
        prompts: of each sample; empty where there are none.
    """

    samples: int
    cond: Condition | None
    prompts: list[str]


def asked_for(trained: TrainedRun, prompt: str | None, prompts: str | None, n: int | None) -> Asked:
    """How many samples, told what.

    Args:
        trained: the run.
        prompt: of all of them.
        prompts: a file of them, taken in turn.
        n: how many; by default one a prompt.

    Raises:
        UsageError: prompts for a run that is told none, none for one that is, or both kinds.
        DataError: a file of no prompts.
    """
    home = home_of(trained.denoiser.net)
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --prompts: give one of them")
    if home is None or not home.tells:
        if prompt is not None or prompts is not None:
            raise UsageError("--prompt: the run was trained without prompts: leave it out")
        count = n or UNPROMPTED
        told = conditions_of(trained, real_images(trained, None).distribution, count) if trained.shape.conditions else None
        return Asked(count, told, [])
    if prompt is None and prompts is None:
        raise UsageError('this run draws what it is told: add --prompt "...", or --prompts FILE with one a line')
    texts = [prompt] if prompt is not None else read_prompts(_existing(prompts or ""))
    count = n or len(texts)
    used = texts[:count]
    factor = home.pixels_of_latents(trained.shape.sample[1:])
    device = device_of(trained.denoiser.net)
    cond = {name: value.to(device) for name, value in home.told(used, pixels=factor).items()}
    return Asked(count, cond, [used[k % len(used)] for k in range(count)])


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--prompts {name}: there is no such file: write one prompt a line")
    return path
