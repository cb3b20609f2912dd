"""The objects that a config stands for."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xhat.budgets import require_memory
from xhat.config.config import Config
from xhat.config.expressions import evaluate
from xhat.config.make import make
from xhat.config.names import OF_SAMPLERS, OF_TERMS
from xhat.config.options import SamplingConfig
from xhat.config.syntax import names_in
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Schedule
from xhat.diffusion.targets import Target
from xhat.diffusion.times import TimeSampler
from xhat.diffusion.variances import POSTERIOR
from xhat.errors import ConfigError
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import Penalty
from xhat.losses.penalties.base import of_images_alone
from xhat.losses.rewards.policy import FromSamples
from xhat.objective.multipliers import Multiplier
from xhat.objective.objective import Objective
from xhat.objective.terms import Loss, Term
from xhat.pipelines.network import OWN, home_of
from xhat.pipelines.pretrained import Pretrained
from xhat.registry import (
    GATES,
    MULTIPLIERS,
    NETWORKS,
    PAIRINGS,
    SCHEDULES,
    SPACINGS,
    STEERINGS,
    TARGETS,
    TIME_INPUTS,
    TIMES,
    VARIANCES,
)
from xhat.sampling.generate import Sampling
from xhat.sampling.samplers import Sampler
from xhat.sampling.steering import Steering


def build_denoiser(config: Config, shape: DataShape) -> Denoiser:
    """The denoiser of a config for data of this shape.

    Raises:
        ConfigError: a name or an argument that does not exist, or choices that do not fit together.
    """
    own = config.variance == OWN  # of a pipeline
    variance = POSTERIOR if own else make("variance", config.variance, VARIANCES, object)
    if not hasattr(variance, "log_variance"):
        raise ConfigError(f'variance: "{config.variance}" is no variance; known: {", ".join(VARIANCES)}')
    context = {
        "channels": shape.channels,
        "outputs": shape.channels * variance.outputs,
        "size": shape.size,
        "classes": shape.classes,
        "lora": config.lora,
    }
    _require_room(config.network, context)
    net = make("network", config.network, NETWORKS, nn.Module, context)
    if (home := home_of(net)) is not None:
        return _of_pipeline(config, home)
    if config.lora is not None:
        raise ConfigError("lora: an adapter needs a pipeline under it: start from its folder, --init FOLDER")
    ours = type(net).__module__.startswith("xhat.")  # elsewhere `channels` may mean anything
    if ours and getattr(net, "channels", shape.channels) != shape.channels:
        raise ConfigError(
            f"network: {config.network} takes {net.channels} channels, the data have {shape.channels}: leave channels out"
        )
    if ours and shape.classes is not None and getattr(net, "classes", shape.classes) != shape.classes:
        raise ConfigError(f"network: {config.network} has {net.classes} classes, the data have {shape.classes}")
    try:
        denoiser = Denoiser(
            net,
            make("schedule", config.schedule, SCHEDULES, Schedule),
            make("target", config.target, TARGETS, Target),
            variance=variance,
            time_input=None if config.time_input == "network" else make("time_input", config.time_input, TIME_INPUTS),
            null=None if shape.classes is None else {"label": shape.classes},
        )
        denoiser.units = shape.units
        return denoiser
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _of_pipeline(config: Config, home: Pretrained) -> Denoiser:
    """The denoiser of a pipeline, which says itself what it was trained with."""
    for key in ("schedule", "target", "variance"):
        if (value := getattr(config, key)) != OWN:
            raise ConfigError(f"{key}: {value}, but a pipeline brings its own: leave {key} out, or set it to {OWN}")
    return home.denoiser


def _require_room(text: str, context: dict[str, Any]) -> None:
    """Refuse a network of ours whose weights are larger than all memory, before any of them is there.

    Raises:
        BudgetError: it is.
    """
    name = text.partition("(")[0].strip()
    if name not in NETWORKS or not NETWORKS[name].__module__.startswith("xhat.networks."):
        return
    with torch.device("meta"), _Unfilled():
        net = make("network", text, NETWORKS, nn.Module, context)
    count = sum(p.numel() for p in net.parameters())
    require_memory(4 * count, f"network: {text} has {count:,} parameters", "choose a smaller one")


class _Unfilled(TorchFunctionMode):
    """Networks are made without initial values: on "meta" there are none, and torch loads its compiler to draw some of them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return given.get("tensor", args[0] if args else None)
        return func(*args, **given)


def build_objective(config: Config, denoiser: Denoiser) -> Objective:
    """The objective of a config.

    Raises:
        ConfigError: as for `build_denoiser`.
    """
    times: TimeSampler = make("times", config.times, TIMES, TimeSampler)
    names = ChainMap({"target": denoiser.target, "times": times}, OF_TERMS)  # type: ignore[arg-type]
    terms = {}
    for name, term in config.terms.items():
        if not term.loss:
            raise ConfigError(
                f'terms.{name}.loss is needed, for example "denoising(space=v)" (terms: {", ".join(config.terms)})'
            )
        loss = make(f"terms.{name}.loss", term.loss, names, Loss)
        when = make(f"terms.{name}.when", term.when, GATES)
        try:
            float(when(config.seed, 0))
        except (TypeError, AttributeError):
            raise ConfigError(f'terms.{name}.when: "{term.when}" is no gate; write for example every(4)') from None
        weight = term.weight
        if isinstance(weight, str):
            weight = make(f"terms.{name}.weight", weight, MULTIPLIERS, Multiplier)
        terms[name] = Term(loss, weight, when)
    try:
        pairing = None if config.pairing is None else make("pairing", config.pairing, PAIRINGS)
        perturbation = config.input_perturbation
        return Objective(denoiser, terms, times, seed=config.seed, input_perturbation=perturbation, pairing=pairing)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_penalty(text: str, *, decoded: bool = False) -> Penalty:
    """The function of images (B, C, H, W) -> (B,) that an expression of a penalty or of an image loss stands for.

    Args:
        text: the expression.
        decoded: the images are those that a pipeline has decoded.

    Raises:
        ConfigError: it stands for nothing, or for one that compares with a clean image.
    """
    made = evaluate(text, OF_TERMS)
    if decoded and isinstance(made, ImageLoss) and made.decode is None:
        raise ConfigError(f"{text} is of latents, and what is measured are pictures: add decode=decode()")
    penalty = made.of_images(decoded=decoded) if isinstance(made, ImageLoss | FromSamples) else made
    if isinstance(penalty, Loss) or not callable(penalty) or not of_images_alone(penalty):
        raise ConfigError(f"{text} is no function of images alone")
    return cast(Penalty, penalty)


def build_sampler(text: str) -> Sampler:
    """The sampler of an expression such as ddim or ddim(eta=1)."""
    sampler: Sampler = make("sampler", text, OF_SAMPLERS, Sampler)
    return sampler


def build_steering(text: str, measured: Tensor | None = None) -> Penalty | Steering:
    """What `guided_by` takes: a penalty such as total_variation, or a steering such as dps(total_variation, 2).

    Args:
        text: the expression.
        measured: what `measured` stands for in it, (N, ...).

    Raises:
        ConfigError: it is neither, or needs more than the image.
    """
    own = {} if measured is None else {"measured": measured}
    try:
        made = evaluate(text, ChainMap(own, OF_SAMPLERS))  # type: ignore[arg-type]
    except ConfigError as error:
        if measured is None and "measured" in names_in(text):
            raise ConfigError(f"{text} needs something measured: name its file, --measured FILE") from None
        raise error
    if isinstance(made, ImageLoss):
        made = made.of_images()
    if isinstance(made, Steering) or (callable(made) and not isinstance(made, type | Loss) and of_images_alone(made)):
        return cast(Penalty | Steering, made)
    raise ConfigError(f"{text} is neither a penalty of images alone nor one of {', '.join(STEERINGS)}")


def build_sampling_times(text: str, schedule: Schedule, steps: int) -> Tensor:
    """The sampling times of a spacing, from 1 to 0."""
    spacing: Callable[[Schedule, int], Tensor] = make("sampling.spacing", text, SPACINGS)
    return spacing(schedule, steps)


def build_sampling(how: SamplingConfig, schedule: Schedule) -> Sampling:
    """The sampler, its times on a schedule, and the guidance of a config.

    Raises:
        ValueError: the sampler, the spacing or the number of steps does not exist.
    """
    times = build_sampling_times(how.spacing, schedule, how.steps)
    return Sampling(build_sampler(how.sampler), times, how.guidance)
