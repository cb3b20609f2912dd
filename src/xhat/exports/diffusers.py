"""A trained denoiser as diffusers has it: a LoRA, a pipeline, a scheduler; what diffusers cannot say is refused by name."""

from pathlib import Path
from typing import Any

import torch

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Discrete
from xhat.errors import RunError
from xhat.networks.adapters import adapted_layers
from xhat.pipelines.diffusers_unet import DiffusersUNet
from xhat.pipelines.network import home_of
from xhat.pipelines.reading import quiet
from xhat.pipelines.schedulers import TARGETS, VARIANCES, import_diffusers

LORA, PIPELINE = "a LoRA", "a pipeline"


def write_diffusers(denoiser: Denoiser, folder: Path) -> str:
    """Write a denoiser as diffusers reads it: the adapter of a pipeline alone, or a whole pipeline.

    Args:
        denoiser: of a pipeline, or of a network that is a UNet2DModel.
        folder: a new one.

    Returns:
        What was written: a LoRA, or a pipeline.

    Raises:
        RunError: diffusers has no such network, schedule, target or variance; names it.
    """
    home = home_of(denoiser.net)
    if home is not None:
        with quiet():
            home.save(folder, denoiser)
        return LORA if adapted_layers(denoiser.net) else PIPELINE
    if not isinstance(denoiser.net, DiffusersUNet):
        raise RunError(
            f"diffusers has no {type(denoiser.net).__name__}: only networks of its own go there, of a run that started from a "
            "pipeline, --init FOLDER, or network diffusers_unet(...)"
        )
    scheduler = scheduler_of(denoiser)
    with quiet():
        import_diffusers().DDPMPipeline(denoiser.net.unet, scheduler).save_pretrained(folder)
    return PIPELINE


def scheduler_of(denoiser: Denoiser) -> Any:
    """A DDPMScheduler with the denoiser's table, target and variance.

    Raises:
        RunError: one of them has no counterpart there; names it.
    """
    schedule, variance = denoiser.schedule, denoiser.variance
    if not isinstance(schedule, Discrete):
        raise RunError(
            f"diffusers has no schedule {type(schedule).__name__}: its models are told steps of a table, so train on one, such "
            "as linear_beta() or cosine_beta()"
        )
    prediction = next((name for name, target in TARGETS.items() if target == denoiser.target), None)
    if prediction is None:
        raise RunError(f"diffusers has no target {denoiser.target.name}: it knows {', '.join(TARGETS)}")
    kind = next((name for name, (_, own) in VARIANCES.items() if type(own) is type(variance)), None)
    if kind is None:
        raise RunError(f"diffusers has no reverse variance {type(variance).__name__}: it knows {', '.join(VARIANCES)}")
    return import_diffusers().DDPMScheduler(
        num_train_timesteps=schedule.steps,
        trained_betas=betas_of(schedule).tolist(),
        prediction_type=prediction,
        variance_type=kind,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def betas_of(schedule: Discrete) -> torch.Tensor:
    """beta_i = 1 - alpha_bar_i / alpha_bar_(i-1), (T,) float64."""
    bars = schedule.alpha_bar.double().cpu()
    return 1 - bars[1:] / bars[:-1]
