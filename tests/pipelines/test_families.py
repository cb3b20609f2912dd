"""Each family of diffusers models: the loss of its official training script and the latents of its pipeline, to rounding."""

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import tiny
import torch
from torch import nn
from torch.nn.functional import mse_loss

import xhat
from xhat import FLOW, NOISE, X0, Denoising, Objective, Term, V

ROWS = 3


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(width=tiny.TEXT, length=5):
    return {"encoder_hidden_states": normal(ROWS, length, width, seed=1)}


@dataclass
class Case:
    """One family: its model, its scheduler, its conditions, and how its own script calls it at `timesteps`."""

    model: nn.Module
    scheduler: Any
    cond: dict[str, torch.Tensor]
    script: Any
    target: Any = NOISE
    channels: int = 4
    more: Any = None

    def denoiser(self):
        return xhat.from_diffusers(self.model, self.scheduler, size=8, **(self.more or {}))


def sd():
    def script(model, z, timesteps, cond):
        return model(z, timesteps, cond["encoder_hidden_states"], return_dict=False)[0]

    return Case(tiny.unet_condition(), tiny.ddim(), text(), script)


def sd_v():
    case = sd()
    case.scheduler, case.target = tiny.ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True), V
    return case


def sdxl():
    def script(model, z, timesteps, cond):
        added = {"time_ids": cond["time_ids"], "text_embeds": cond["text_embeds"]}
        return model(z, timesteps, cond["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False)[0]

    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(ROWS, -1)
    cond = {**text(2 * tiny.TEXT), "text_embeds": normal(ROWS, tiny.TEXT, seed=2), "time_ids": sizes}
    return Case(tiny.unet_xl(), tiny.ddim(), cond, script)


def controlled():
    unet = tiny.unet_condition()
    net = tiny.controlnet(unet)

    def script(model, z, timesteps, cond):
        states = cond["encoder_hidden_states"]
        down, mid = net(z, timesteps, states, controlnet_cond=cond["controlnet_cond"], return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return model(z, timesteps, states, **residuals, return_dict=False)[0]

    cond = {**text(), "controlnet_cond": normal(ROWS, 3, 16, 16, seed=3)}
    return Case(unet, tiny.ddim(), cond, script, more={"controlnet": net})


def unet():
    def script(model, z, timesteps, cond):
        return model(z, timesteps, cond["label"]).sample

    torch.manual_seed(0)
    own = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(sample_size=8, in_channels=3, out_channels=3, num_class_embeds=4, **own, **blocks).eval()
    return Case(model, tiny.ddim(beta_schedule="linear"), {"label": torch.tensor([0, 3, 1])}, script, channels=3)


def sd3():
    def script(model, z, timesteps, cond):
        return model(hidden_states=z, timestep=timesteps, **cond, return_dict=False)[0]

    cond = {**text(2 * tiny.TEXT), "pooled_projections": normal(ROWS, 2 * tiny.TEXT, seed=2)}
    return Case(tiny.sd3(), tiny.flow(shift=3.0), cond, script, FLOW)


def flux():
    def script(model, z, timesteps, cond):
        pipeline = diffusers.FluxPipeline
        rows, channels, height, width = z.shape
        row = model(
            hidden_states=pipeline._pack_latents(z, rows, channels, height, width),
            timestep=timesteps / 1000,
            txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, z.device, z.dtype),
            **cond,
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(row, height=height * 8, width=width * 8, vae_scale_factor=8)

    pooled = {"pooled_projections": normal(ROWS, tiny.TEXT, seed=2), "guidance": torch.full((ROWS,), 3.5)}
    return Case(tiny.flux(), tiny.flow(use_dynamic_shifting=True), {**text(), **pooled}, script, FLOW)


def dit():
    def script(model, z, timesteps, cond):
        return model(z, timestep=timesteps, class_labels=cond["label"], return_dict=False)[0].chunk(2, dim=1)[0]

    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    return Case(tiny.dit(), scheduler, {"label": torch.tensor([0, 1000, 3])}, script)


def pixart():
    def script(model, z, timesteps, cond):
        added = {"resolution": None, "aspect_ratio": None}
        return model(z, timestep=timesteps, **cond, added_cond_kwargs=added).sample.chunk(2, 1)[0]

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    return Case(tiny.pixart(), tiny.ddim(beta_schedule="linear"), {**text(), "encoder_attention_mask": mask}, script)


def sana():
    def script(model, z, timesteps, cond):
        return model(hidden_states=z, timestep=timesteps, **cond, return_dict=False)[0]

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    return Case(tiny.sana(), tiny.flow(shift=3.0), {**text(), "encoder_attention_mask": mask}, script, FLOW)


CASES = [sd, sd_v, sdxl, controlled, unet, sd3, flux, dit, pixart, sana]


pytestmark = pytest.mark.filterwarnings("ignore:this PixArtTransformer2DModel also predicts a variance")


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request):
    return request.param()


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def levels(case, denoiser, index):
    """The timesteps, z of (x0, noise) and times t that a script has at these places of the scheduler's table."""
    scheduler = case.scheduler
    if case.target is not FLOW:
        timesteps = index
        return timesteps, lambda x0, noise: scheduler.add_noise(x0, noise, timesteps), (index + 1) / denoiser.schedule.steps
    timesteps, sigma = scheduler.timesteps[index], scheduler.sigmas[index]
    t = denoiser.schedule.t_of(2 * ((1 - sigma.double()) / sigma.double()).log()).float()
    wide = sigma[:, None, None, None]
    return timesteps, lambda x0, noise: (1 - wide) * x0 + wide * noise, t


def test_the_loss_is_the_scripts(case):
    """mean ‖target - model(z, timestep, ...)‖² of the same x0, noise and timesteps, and its gradient."""
    denoiser = case.denoiser()
    objective = Objective(denoiser, {"denoise": Term(Denoising(case.target))})
    x0 = normal(ROWS, case.channels, 8, 8)
    timesteps, noisy, t = levels(case, denoiser, torch.tensor([7, 500, 998]))
    draw = objective.draw_at(x0, t, step=0, cond=case.cond)
    ours = objective.per_image("denoise", draw).mean()
    z = noisy(x0, draw.noise)
    close(draw.z, z)
    wanted = {NOISE: lambda: draw.noise, FLOW: lambda: draw.noise - x0}
    target = wanted.get(case.target, lambda: case.scheduler.get_velocity(x0, draw.noise, timesteps))()
    theirs = mse_loss(case.script(case.model, z, timesteps, case.cond), target)
    close(ours, theirs)
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    mine, own = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs))
    for a, b in zip(mine, own, strict=True):
        assert (a is None or not a.any()) if b is None else torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_sd3s_script_in_x0():
    """Its network output, preconditioned: z - sigma v is the clean image (Esser et al. 2024, section 5)."""
    case = sd3()
    denoiser = case.denoiser()
    objective = Objective(denoiser, {"denoise": Term(Denoising(X0))})
    x0 = normal(ROWS, 4, 8, 8)
    timesteps, noisy, t = levels(case, denoiser, torch.tensor([7, 500, 998]))
    draw = objective.draw_at(x0, t, step=0, cond=case.cond)
    z, sigma = noisy(x0, draw.noise), (timesteps / 1000)[:, None, None, None]
    close(
        objective.per_image("denoise", draw).mean(), mse_loss(case.script(case.model, z, timesteps, case.cond) * -sigma + z, x0)
    )


@torch.no_grad()
def test_the_time_is_float32_whatever_the_weights_are(case):
    """In bf16 timestep 499 would be 500."""
    seen = {}

    def watch(module, args, kwargs):
        seen["time"] = kwargs["timestep"]
        seen["z"] = kwargs.get("sample", kwargs.get("hidden_states"))

    case.model.to(torch.bfloat16).register_forward_pre_hook(watch, with_kwargs=True)
    denoiser = case.denoiser()
    t = torch.tensor([0.5, 0.499, 0.001])
    assert denoiser(normal(ROWS, case.channels, 8, 8), t, case.cond).x0.dtype == torch.float32
    scale = 1000 if "Flux" in type(case.model).__name__ else 1
    wanted = 1000 * denoiser.schedule.sigma(t) if case.target is FLOW else 1000 * t - 1
    close(seen["time"].float() * scale, wanted.round() if case.target is not FLOW else wanted, 1e-4)
    assert (seen["z"].dtype, seen["time"].dtype in (torch.float32, torch.int64)) == (torch.bfloat16, True)
