"""Values of a config that were asked for and change nothing: one line each, none for what nobody touched."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xhat.config.config import Config
from xhat.config.data import Data
from xhat.config.origins import needed_by
from xhat.config.use import used_files
from xhat.data.layers import layers
from xhat.pipelines.network import folder_of

if TYPE_CHECKING:
    from xhat.training.setup import Setup

UNTOLD = "the network is not told labels"
OWN_SOURCE = "a data source of --use says itself what its samples are and what the network is told"
SAID = "the expression of --data says itself what the network is told: labels=True of images(...), label=... of others"
PROMPTED = "a pipeline is told prompts, the names of classes too"
UNTAUGHT = "label_dropout is 0, so that the network is never shown the null class, against which guidance works"


FEW = "it is fewer than 16 samples, too few to measure on: errors are of training samples"
"""What a share to hold out comes to."""


def without_effect(config: Config, base: Mapping[str, Any], setup: "Setup", data: Data) -> list[str]:
    """What to say of the values of a new run.

    Args:
        config: of the run.
        base: the values that the user did not choose: of the preset, of the starting weights; else the defaults.
        setup: that was made of it.
        data: of the config.
    """
    held_out = data.held_out
    has_test = data.images is not None and data.images.held_out is not None and data.images.held_out.is_test_set
    few = FEW if held_out is None and config.held_out else None
    told, muon, guidance = setup.shape.classes is not None, len(setup.state.optimizers) > 1, config.sampling.guidance
    why = {
        "label_dropout": None if told else UNTOLD,
        "sampling.guidance": None if told or guidance == 1 else UNTOLD,
        "held_out": f"{config.data} has a test part of its own" if has_test else few,
        "shard": None if setup.accelerator.num_processes > 1 else "there is one process, which has all weights",
        "eval_every": None if held_out is not None or not config.eval_every else "no images are held out",
        "optimizer.muon_lr": None if muon or not config.optimizer.muon_lr else "the network names no hidden matrices",
    }
    if folder_of(config.network) is not None:
        why |= {"labels": PROMPTED, "label_dropout": None, "sampling.guidance": None}
    elif data.images is None:
        ours = any(type(one).__module__.startswith("xhat.sources.") for one in layers(data.train))
        why |= {"labels": SAID} if ours else dict.fromkeys(("labels", "label_dropout", "image_size"), OWN_SOURCE)
    asked = [key for key in why if _asked(config, base, key)]
    lines = [f"{key} {_value(config, key)} has no effect: {why[key]}" for key in asked if why[key]]
    if told and guidance != 1 and config.label_dropout == 0 and {"label_dropout", "sampling.guidance"} & set(asked):
        lines.append(f"sampling.guidance {guidance:g} means little: {UNTAUGHT}")
    needed = needed_by(config)
    unused = [file.path for file in used_files() if file not in needed]
    return [*lines, *(f"--use {path} has no effect: the config names none of its parts" for path in unused)]


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _asked(config: Config, base: Mapping[str, Any], key: str) -> bool:
    """Whether the value is another than it would have been by itself."""
    outer, _, inner = key.partition(".")
    own = base.get(outer, {} if inner else None)
    own = own.get(inner) if inner else own
    return bool(_value(config, key) != (_value(Config(), key) if own is None else own))
