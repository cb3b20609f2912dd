"""What a folder holds before a training begins in it: nothing, or a run that goes on."""

from pathlib import Path
from typing import Any

from xhat.config.changes import differences
from xhat.config.config import Config, from_values
from xhat.config.earlier import upgraded
from xhat.errors import ConfigError, DamagedError, RunError
from xhat.files.values import of_type
from xhat.runs.checkpoint import Checkpoint, newest_checkpoint
from xhat.runs.objects import Objects
from xhat.runs.places import CONFIG_FILE
from xhat.runs.recipe import read_run_config
from xhat.runs.used import Used


def config_before(run: Path) -> Config | None:
    """The config of a run so far: that of its folder or, where that is lost, of its checkpoint. None if there is no run.

    Raises:
        RunError: it is damaged.
        OSError: it cannot be read.
    """
    if (run / CONFIG_FILE).exists():
        return read_run_config(run)
    checkpoint = newest_checkpoint(run)[0] if run.is_dir() else None
    if checkpoint is None or not _about(checkpoint):
        return None
    return config_in(checkpoint)


def config_in(checkpoint: Checkpoint) -> Config | None:
    """The config that a checkpoint was trained with; None of objects, or of an earlier version, which did not say.

    Raises:
        RunError: it is of a version that this one does not know.
    """
    values = _about(checkpoint).get("config")
    try:
        return None if values is None else from_values(upgraded(values))
    except DamagedError as error:
        raise RunError(
            f"{checkpoint.path} holds a config that is not known here ({error}): resume with another version"
        ) from None


def objects_in(checkpoint: Checkpoint) -> Objects | None:
    """What a checkpoint was trained on; None of a config, or of an earlier version, which did not say.

    Raises:
        RunError: it is of a version that this one does not know.
    """
    values = _about(checkpoint).get("objects")
    try:
        return None if values is None else Objects.of(values)
    except (ConfigError, DamagedError) as error:
        raise RunError(f"{checkpoint.path} holds options that are not known here ({error}): use another version") from None


def used_in(checkpoint: Checkpoint) -> dict[str, Used]:
    """The files of parts that a checkpoint was trained with."""
    used: dict[str, Used] = of_type(_about(checkpoint).get("used", {}), dict[str, Used])
    return used


def require_unedited(checkpoint: Checkpoint, before: Config, may_change: tuple[str, ...]) -> None:
    """Refuse to go on with a config that somebody has edited in what must stay.

    Args:
        checkpoint: knows what it was trained with.
        before: the run's config.
        may_change: what may be otherwise.

    Raises:
        RunError: names what differs.
    """
    trained = config_in(checkpoint)
    if trained is not None and (changed := differences(trained, before, may_change)):
        path = checkpoint.path.parent / CONFIG_FILE
        raise RunError(
            f"{path} was edited since {checkpoint.path.name} was trained ({'; '.join(changed[:3])}): remove it, and --resume "
            "writes that of the checkpoint; to train with the change, choose another --run"
        )


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    about: dict[str, Any] = checkpoint.state.get("about", {})
    return about
