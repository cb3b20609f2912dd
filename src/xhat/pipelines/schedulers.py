"""What a scheduler of diffusers says of a model: its noise schedule, its target, its reverse variance, its timesteps."""

import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

from xhat.diffusion.schedules import Discrete, Flow, Schedule
from xhat.diffusion.targets import FLOW, NOISE, X0, Target, V
from xhat.diffusion.time_inputs import OverTime, diffusers_index, flow_timestep
from xhat.diffusion.variances import FORWARD, LEARNED, POSTERIOR, Variance
from xhat.errors import RunError

TARGETS = {"epsilon": NOISE, "v_prediction": V, "sample": X0}
VARIANCES: dict[str, tuple[str, Variance]] = {
    "fixed_small": ("posterior", POSTERIOR),
    "fixed_small_log": ("posterior", POSTERIOR),
    "fixed_large": ("forward", FORWARD),
    "learned_range": ("learned", LEARNED),
}
OTHER_STEPS = {"timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True, "use_karras_sigmas": False}
"""Settings of a scheduler's own steps, and the values with which they are those of `uniform_times`: from T down to the data."""


@dataclass(frozen=True)
class Conventions:
    """What a model was trained with.

    Attributes:
        schedule: alpha(t) and sigma(t).
        target: what the network predicts.
        variance: of the reverse step.
        time_input: what the network is shown of t.
    """

    schedule: Schedule
    target: Target
    variance: Variance
    time_input: OverTime


def conventions(scheduler: Any, tokens: int | None = None) -> Conventions:
    """Read a scheduler; a note tells of what it does while sampling that xhat's samplers do not.

    Flow matching: sigma = shift u / (1 + (shift - 1) u), where a scheduler with `use_dynamic_shifting` has
    shift = exp(mu) or mu, and mu is linear in the number of tokens (Esser et al. 2024, eq. 23; FLUX.1's code).

    Args:
        scheduler: of diffusers.
        tokens: of an image, for a shift that depends on the resolution.

    Raises:
        RunError: it has no counterpart here, or its shift needs `tokens`.
    """
    config, name = scheduler.config, type(scheduler).__name__
    prediction = config.get("prediction_type")
    if prediction == "flow_prediction" or (prediction is None and "shift" in config):
        steps = int(config.num_train_timesteps)
        return Conventions(Flow(_shift(scheduler, tokens), 1 / steps), FLOW, POSTERIOR, flow_timestep(steps))
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise RunError(
            f"{name} has no table of steps (alphas_cumprod) and no flow shift: give the scheduler that the model was trained "
            "with, such as DDPMScheduler or FlowMatchEulerDiscreteScheduler"
        )
    variance = known("variance_type", config.get("variance_type") or "fixed_small", VARIANCES)[1]
    target = known("prediction_type", prediction or "epsilon", TARGETS)
    warn_of_clipping(scheduler)
    return Conventions(Discrete.from_diffusers(scheduler), target, variance, diffusers_index)


def _shift(scheduler: Any, tokens: int | None) -> float:
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("invert_sigmas"):
        raise RunError(f"{name} inverts its sigmas (invert_sigmas): t = 1 is noise here, and its model takes it for data")
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift", config.get("shift", 1.0)))
    if tokens is None:
        raise RunError(f"{name} shifts its times by the size of the images: give size, the latents' side or (height, width)")
    base, low = config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)
    slope = (config.get("max_shift", 1.15) - low) / (config.get("max_image_seq_len", 4096) - base)
    mu = low + slope * (tokens - base)
    return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


def warn_of_clipping(scheduler: Any) -> None:
    """Say which parts of the scheduler's own sampling xhat's samplers leave out, where it clips what the network says of x0."""
    config = scheduler.config
    by = [key for key in ("thresholding", "clip_sample") if config.get(key)]
    if not by:
        return
    within = "a quantile of its pixels" if by[0] == "thresholding" else f"±{config.get('clip_sample_range', 1.0):g}"
    others = [f"{key} {config[key]}" for key, ours in OTHER_STEPS.items() if config.get(key, ours) != ours]
    more = f"; nor are its steps xhat's ({', '.join(others)})" if others else ""
    warnings.warn(
        f"the checkpoint's scheduler has {by[0]}: it keeps x0_hat within {within} in each step of sampling, xhat's samplers do "
        f"not clip, and the largest pixel may lie far outside before it is cut to 8 bits{more}",
        stacklevel=3,
    )


def build_scheduler(config: dict[str, Any]) -> Any:
    """The diffusers scheduler of a scheduler_config.json, by its own _class_name."""
    diffusers, name = import_diffusers(), str(config.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise RunError(f"_class_name {name} is no scheduler of diffusers {diffusers.__version__}")
    return build(kind, config)


def build(kind: Any, config: dict[str, Any]) -> Any:
    """A class of diffusers from its config."""
    try:
        return kind.from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"no {kind.__name__} can be built from its config: {reason}") from None


def known(key: str, value: Any, names: dict[str, Any]) -> Any:
    """names[value], or an error that lists the names."""
    if str(value) not in names:
        raise RunError(f"{key} {value} has no counterpart in xhat; known: {', '.join(names)}")
    return names[value]


def parse(text: str, where: str) -> dict[str, Any]:
    """A config from its text; `where` is its name in the error."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RunError(f"{where} is no JSON object: it must be the text of a diffusers config")
    return values


def import_diffusers() -> Any:
    """The library, or an error that says how to install it."""
    try:
        import diffusers
    except ImportError:
        raise _lacks("diffusers") from None
    return diffusers


def import_transformers() -> Any:
    """The library; None where it is not installed, as for pipelines without text."""
    try:
        import transformers
    except ImportError:
        return None
    return transformers


def import_peft() -> Any:
    """The library, or an error that says how to install it."""
    try:
        import peft
    except ImportError:
        raise _lacks("peft") from None
    return peft


def _lacks(name: str) -> RunError:
    return RunError(f'{name} is not installed: pip install {name}, or pip install "xhat[diffusers]"')
