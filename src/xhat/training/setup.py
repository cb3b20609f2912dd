"""The objects that a config stands for, ready to be trained on this process; what cannot be trained is refused here."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from xhat.config.build import build_denoiser, build_objective, build_sampling
from xhat.config.config import Config
from xhat.data.images import Images
from xhat.data.shape import DataShape, data_shape
from xhat.errors import ConfigError, RunError
from xhat.objective.objective import Objective
from xhat.rng import Shard
from xhat.runs.checkpoint import Checkpoint
from xhat.runs.initial import load_into
from xhat.training.batches import Batches
from xhat.training.budget import Budget
from xhat.training.ema import power_average
from xhat.training.hardware import fast_bf16
from xhat.training.held_out import HeldOut
from xhat.training.learning_rate import LearningRate
from xhat.training.optimizers import build_optimizers
from xhat.training.state import State


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and for how long.

    Attributes:
        config: that all of it was made of.
        shape: of the data.
        state: what training changes.
        batches: the training images.
        rows: images of a micro-batch on this process.
        budget: when training ends.
        rates: learning rates of the state's optimizers.
        held_out: images to measure on while training, if there are any.
        accelerator: the processes and their devices.
        autocast: bf16 for the network, or nothing. Accelerate keeps its precision for the whole process; with a context of
            our own a second run may have another.
        resumed_from: name of the checkpoint, if there was one.
    """

    config: Config
    shape: DataShape
    state: State
    batches: Batches
    rows: int
    budget: Budget
    rates: LearningRate
    held_out: HeldOut | None
    accelerator: Accelerator
    autocast: torch.autocast
    resumed_from: str | None


def set_up(config: Config, data: Images, checkpoint: Checkpoint | None = None, held_out: Images | None = None) -> Setup:
    """What a config trains on these data; nothing is written.

    Args:
        config: what and how.
        data: the training images.
        checkpoint: go on from here.
        held_out: images to measure on while training.

    Raises:
        RunError: no budget, a batch that cannot be divided, a term that cannot be computed, a checkpoint of other data.
        ConfigError: choices of the config that do not fit together.
    """
    budget, shape = Budget.of(config), data_shape(data, config.labels)
    objective = _objective(config, shape, fresh=checkpoint is None)
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    device, rows = accelerator.device, _rows(config, accelerator.num_processes)
    objective.to(device)
    batches = Batches(data, shape.classes, device, config.batch_size, config.seed, config.label_dropout)
    measured = None if held_out is None else HeldOut(config, held_out, shape, device)
    _refuse_what_cannot_run(config, objective, batches, min(2, rows))
    average = power_average(objective.denoiser, config.ema) if config.ema else None
    state = State(objective, average, build_optimizers(objective, config.optimizer), batches.fingerprint())
    rates = LearningRate(state.optimizers, budget, config.optimizer.warmup_steps)  # at their peaks, which a checkpoint changes
    if checkpoint is not None:
        state.load(checkpoint)
    return Setup(
        config=config,
        shape=shape,
        state=state,
        batches=batches,
        rows=rows,
        budget=budget,
        rates=rates,
        held_out=measured,
        accelerator=accelerator,
        autocast=_autocast(config, device),
        resumed_from=None if checkpoint is None else checkpoint.path.name,
    )


def _objective(config: Config, shape: DataShape, *, fresh: bool) -> Objective:
    """With the initial weights; a run that goes on has its own."""
    torch.manual_seed(config.seed)
    denoiser = build_denoiser(config, shape)
    if config.init is not None and fresh:
        load_into(denoiser, config.init, shape)
    return build_objective(config, denoiser)


def _rows(config: Config, processes: int) -> int:
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise RunError(f"batch_size {config.batch_size} must be a multiple of processes · accumulate = {parts}")
    return config.batch_size // parts


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _refuse_what_cannot_run(config: Config, objective: Objective, batches: Batches, rows: int) -> None:
    """Every term on a few images, and the sampler's plan: what does not fit is said before anything is written."""
    try:
        x0, cond = batches.get(0, Shard(0, batches.size), rows)
        draw = objective.draw(x0, step=0, cond=cond, shard=Shard(0, len(x0)))
        for name in objective.terms:
            try:
                objective.per_image(name, draw)
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                RuntimeError,
                TypeError,
            ) as error:  # of a name that is no penalty, sampler or weight
                line = str(error).strip().splitlines()[0]
                raise RunError(f'term "{name}" ({config.terms[name].loss}) cannot be computed: {line}') from error
        build_sampling(config.sampling, objective.denoiser.schedule)
    except ConfigError:
        raise
    except ValueError as error:
        raise RunError(str(error)) from None
