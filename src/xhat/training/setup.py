"""Objects, ready to be trained on this process; what cannot be trained is refused here, before anything is written."""

import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from xhat.budgets import require_memory
from xhat.config.build import build_sampling
from xhat.config.config import Config
from xhat.config.options import Options
from xhat.config.origins import called
from xhat.config.watch import build_watched
from xhat.data.ahead import Ahead
from xhat.data.batch import Batch, chosen_rows
from xhat.data.shape import DataShape
from xhat.data.source import DataSource, Feed, fingerprint_of, first_samples, name_of, said_of, shape_of
from xhat.diffusion.denoiser import Condition
from xhat.distributed import ALONE, Shares
from xhat.errors import ConfigError, DataError, RunError, with_kind
from xhat.evaluation.denoising import LEVELS, reached
from xhat.evaluation.pictures import is_shown
from xhat.objective.draw import Draw
from xhat.objective.objective import Objective
from xhat.rng import Shard
from xhat.runs.averages import TRACKS
from xhat.runs.checkpoint import Checkpoint
from xhat.runs.given import Given
from xhat.sampling.guidance import Guided
from xhat.training.budget import Budget
from xhat.training.ema import PowerAverage
from xhat.training.feeding import fed
from xhat.training.hardware import fast_bf16
from xhat.training.held_out import IMAGES, STRIDE, HeldOut
from xhat.training.launched import require_plain_launch
from xhat.training.learning_rate import LearningRate
from xhat.training.optimizers import build_optimizers
from xhat.training.sharing import rows_of, shared_out_otherwise
from xhat.training.splitting import BLOCKS, split_up
from xhat.training.state import State
from xhat.training.trackers import require_tracker

PICTURE_IMAGES, PICTURE_LATENTS, CHECKED = 64, 8, 2
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and for how long.

    Attributes:
        options: how.
        config: that all of it was made of; None of objects that no config names.
        shape: of the data.
        state: what training changes.
        feed: the training samples.
        rows: samples of a micro-batch on this process.
        budget: when training ends.
        rates: learning rates of the state's optimizers.
        held_out: samples to measure on while training, if there are any.
        told: what samples in pictures are told, where the data have conditions beside classes.
        accelerator: the processes and their devices.
        autocast: bf16 for the network, or nothing. Accelerate keeps its precision for the whole process; with a context of
            our own a second run may have another.
        resumed: from which checkpoint; None without one.
        about: what is trained, as plain values, for a checkpoint: the config, or the objects in words.
    """

    options: Options
    config: Config | None
    shape: DataShape
    state: State
    feed: Feed
    rows: int
    budget: Budget
    rates: LearningRate
    held_out: HeldOut | None
    told: Condition | None
    accelerator: Accelerator
    autocast: torch.autocast
    resumed: "Resumed | None"
    about: dict[str, Any]

    @property
    def by_block(self) -> bool:
        """Whether processes share the weights, and gather a block at a time: each call of the network is one of all of them."""
        return self.options.shard == BLOCKS and self.accelerator.num_processes > 1

    @property
    def shares(self) -> Shares:
        """Who measures and draws what: each process a part, or all of them all of it, `by_block`."""
        if self.by_block:
            return ALONE
        return Shares(self.accelerator.process_index, self.accelerator.num_processes)

    def reading(self) -> AbstractContextManager[None]:
        """Training is under way: what reads ahead may."""
        source = self.feed.source
        return source.at_work() if isinstance(source, Ahead) else nullcontext()


@dataclass(frozen=True)
class Resumed:
    """Where a training goes on.

    Attributes:
        name: of the checkpoint.
        log: what its next row had averaged so far, see `Log.state`; None of an earlier version.
        remark: what is otherwise than before; empty if nothing is.
    """

    name: str
    log: dict[str, Any] | None
    remark: str


def set_up(
    objective: Objective,
    source: DataSource,
    options: Options,
    *,
    held_out: DataSource | None = None,
    checkpoint: Checkpoint | None = None,
    config: Config | None = None,
    about: dict[str, Any] | None = None,
) -> Setup:
    """An objective and its data, with all that training adds to them; nothing is written.

    Args:
        objective: what is trained; it moves to the device.
        source: the training data.
        options: how.
        held_out: data to measure on while training.
        checkpoint: go on from here.
        config: that the objective and the data were made of.
        about: see `Setup`.

    Raises:
        RunError: no budget, a batch that cannot be divided, a term that cannot be computed, a checkpoint of other data.
        ConfigError: choices of the options that do not fit together.
        DataError: a source that gives no batches, or batches of several shapes.
    """
    require_plain_launch()
    if options.track is not None:
        require_tracker(options.track)
    budget, shape = Budget.of(options), shape_of(source)
    in_buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # which DDP would otherwise hold beside gradients
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), kwargs_handlers=[in_buckets])
    device, rows = accelerator.device, rows_of(options, accelerator.num_processes)
    size = 4 * rows * math.prod(shape.sample)
    require_memory(size, f"{rows:,} samples {shape.sample} at a time", "lower batch_size, or raise accumulate")
    _require_parameters(objective)
    shared = bool(options.shard) and accelerator.num_processes > 1
    if not shared:  # what is split moves part by part, that the device needs no room for the whole
        objective.to(device)
    objective.train()
    objective.denoiser.units = objective.denoiser.units or shape.units
    average = PowerAverage(objective.denoiser, options.ema).eval() if options.ema else None
    tracks = [PowerAverage(objective.denoiser, width).eval() for width in TRACKS if options.averages_every]
    given = Given.of(objective.denoiser.net)
    if shared:
        split_up(objective, [a for a in (average, *tracks) if a is not None], options, device)
    optimizers = build_optimizers(objective, options.optimizer)
    state = State(objective, average, optimizers, fingerprint_of(source), given=given, tracks=tracks)
    feed = Feed(fed(source, options, rows, accelerator), shape, device)
    _refuse_what_cannot_run(objective, feed, options, rows, {} if config is None else called(config))
    build_watched(options.watch, shape, decoded=objective.denoiser.decode is not None)  # or refused
    measured = None if held_out is None else _held_out(objective, Feed(held_out, shape, device), options)
    latents = objective.denoiser.decode is not None
    told = (
        first_samples(feed, PICTURE_LATENTS if latents else PICTURE_IMAGES).cond
        if shape.conditions and is_shown(shape, objective.denoiser)
        else None
    )
    rates = LearningRate(state.optimizers, budget, options.optimizer.warmup_steps)  # at their peaks, which a checkpoint changes
    resumed = None
    if checkpoint is not None:
        remark = shared_out_otherwise(checkpoint, options, accelerator.num_processes, objective.denoiser.net)
        state.load(checkpoint)
        resumed = Resumed(checkpoint.path.name, checkpoint.state.get("log"), remark)
    return Setup(
        options=options,
        config=config,
        shape=shape,
        state=state,
        feed=feed,
        rows=rows,
        budget=budget,
        rates=rates,
        held_out=measured,
        told=told,
        accelerator=accelerator,
        autocast=_autocast(options, device),
        resumed=resumed,
        about=about or {},
    )


def _require_parameters(objective: Objective) -> None:
    parameters = dict(objective.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        raise RunError("nothing can be trained: the network has no parameters that require a gradient")
    other = next((name for name, p in parameters.items() if not p.is_floating_point()), None)
    half = next((name for name, p in parameters.items() if p.requires_grad and p.dtype in HALF), None)
    if half is not None:
        warnings.warn(
            f"what learns is in {parameters[half].dtype} ({half}), which loses small steps: load the weights as float32, or "
            "train an adapter on them",
            stacklevel=2,
        )
    if other is not None:
        raise RunError(f"parameter {other} is {parameters[other].dtype}: keep what is no float in a buffer")


def _held_out(objective: Objective, feed: Feed, options: Options) -> HeldOut | None:
    """What is measured while training; nothing on a schedule that is too short for the noise levels."""
    try:
        levels = reached(objective.denoiser.schedule, LEVELS[::STRIDE])
    except ValueError:
        return None
    try:
        found = HeldOut(options, first_samples(feed, IMAGES), levels)
    except DataError as error:
        raise DataError(f"held out: {error}") from error
    found.check(objective.denoiser)
    return found


def _autocast(options: Options, device: torch.device) -> torch.autocast:
    bf16 = options.precision == "bf16" or (options.precision == "auto" and fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _refuse_what_cannot_run(objective: Objective, feed: Feed, options: Options, rows: int, said: Mapping[str, str]) -> None:
    """Every term on a few samples, and the sampler's plan: what does not fit is said before anything is written.

    Whatever a user's own code raises is one line here; its traceback is the cause.

    Args:
        said: what the network and the terms were called in a config.
    """
    for step in said_of(feed.source, "firsts", (0,)):  # of sources of several sizes each is tried
        _refuse_a_batch(objective, feed, feed.get(step, Shard(0, options.batch_size), rows), said, options, rows)
    try:
        build_sampling(options.sampling, objective.denoiser.schedule)
    except ConfigError:
        raise
    except ValueError as error:
        raise RunError(str(error)) from None


def _refuse_a_batch(
    objective: Objective, feed: Feed, first: Batch, said: Mapping[str, str], options: Options, rows: int
) -> None:
    """Every term on a few samples of a batch."""
    groups = [part.together for term in objective.terms.values() for part in term.loss.parts() if part.together]
    least = math.lcm(CHECKED, *groups)
    few = torch.arange(rows if rows < least or any(rows % group for group in groups) else least)
    batch = Batch(first.x0[few], *(chosen_rows(told, few, len(first.x0)) for told in (first.cond, first.extra)))
    try:
        draw = objective.draw(batch.x0, step=0, cond=batch.cond, extra=batch.extra, shard=Shard(0, len(few)))
    except ValueError as error:
        raise _refusal(said.get("network", ""), str(error)) from error
    except Exception as error:
        network = said.get("network") or type(objective.denoiser.net).__name__
        if "DTensor" in str(error):  # weights that nobody gathered
            raise RunError(f"the network {network} has a list whose parts it does not call: take --shard true") from error
        what = f"the network {network} cannot be called with samples {tuple(batch.x0.shape)}"
        raise RunError(f"{what}: {with_kind(error)}") from error
    for name, term in objective.terms.items():
        if batch.x0.is_meta and term.loss.at_drawn_time:
            raise RunError(
                f'term "{name}" is of images, and {name_of(feed.source)} holds prompts alone: give terms of chains in its '
                """place, --terms '{"reward": {"loss": "image_loss(..., full_chain(...))"}}'"""
            )
        try:
            objective.per_image(name, draw)
        except ValueError as error:
            raise _refusal(said.get(name, ""), str(error)) from error
        except Exception as error:
            called = f" ({said[name]})" if name in said else ""
            raise RunError(f'term "{name}"{called} cannot be computed: {with_kind(error)}') from error
    _refuse_guidance_that_fails(objective, draw, options.sampling.guidance, feed.shape)


@torch.no_grad()
def _refuse_guidance_that_fails(objective: Objective, draw: Draw, guidance: float, shape: DataShape) -> None:
    """A guided call, which shows the network what stands for no condition: one class more than the data have."""
    if guidance == 1 or not (shape.classes or shape.conditions):
        return
    denoiser, classes = objective.denoiser, shape.classes
    null = denoiser.null or (None if classes is None else {"label": classes})
    t = torch.full_like(draw.t, 0.5) if draw.z.isnan().any() else draw.t  # without samples
    try:
        Guided(denoiser, guidance, null)(draw.z, t, draw.cond)
    except Exception as error:
        if denoiser.null is None and classes is not None:
            raise RunError(
                f"sampling.guidance {guidance:g} shows the network the null class, number {classes}, which it cannot take "
                f"({with_kind(error)}): set it to 1, or give the network one class more and the data a WithNull"
            ) from error
        raise RunError(f"sampling.guidance {guidance:g}: {with_kind(error)}") from error


def _refusal(called: str, message: str) -> RunError:
    """With the file that a part came from, if it was a user's."""
    origin = called.partition(" of ")[2]
    return RunError(f"{origin}: {message}" if origin else message)
