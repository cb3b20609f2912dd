"""Latents of guided sampling, equal to those of diffusers' own pipelines for the same prompts and the same noise."""

import diffusers
import pytest
import tiny
import torch

import xhat
from xhat import Guided, sample
from xhat.sampling.samplers import DDIM, Euler
from xhat.sampling.spacings import scheduler_times

PROMPTS, STEPS, SCALE = ["a red dog", "two cats on a mat."], 4, 5.0
pytestmark = pytest.mark.filterwarnings(
    "ignore:this PixArtTransformer2DModel also predicts a variance", "ignore::FutureWarning"
)


def start(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def of_text(pipeline, **more):
    """(conditions, null conditions) from a pipeline whose encode_prompt gives states and negative states."""
    states, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, **more)
    return {"encoder_hidden_states": states}, {"encoder_hidden_states": negative[:1]}


def of_pooled_text(pipeline, name, *prompts):
    states, negative, pooled, negative_pooled = pipeline.encode_prompt(*prompts, device="cpu")
    return {"encoder_hidden_states": states, name: pooled}, {"encoder_hidden_states": negative[:1], name: negative_pooled[:1]}


def of_masked_text(pipeline, **more):
    states, mask, negative, negative_mask = pipeline.encode_prompt(PROMPTS, True, device="cpu", **more)
    return (
        {"encoder_hidden_states": states, "encoder_attention_mask": mask},
        {"encoder_hidden_states": negative[:1], "encoder_attention_mask": negative_mask[:1]},
    )


def ours(pipeline, model, z, cond, null, sampler=None, scale=SCALE, **more):
    """Sampling by xhat, after the pipeline has set its own steps."""
    denoiser = xhat.from_diffusers(model, pipeline.scheduler, **more)
    times = scheduler_times(denoiser.schedule, pipeline.scheduler)
    return sample(Guided(denoiser, scale, null), sampler or DDIM(), z, times, cond=cond)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha_to_one", [True, False])
@torch.no_grad()
def test_stable_diffusion(prediction, alpha_to_one):
    more = {} if alpha_to_one else {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    pipeline = tiny.stable_diffusion(scheduler=tiny.ddim(prediction_type=prediction, **more))
    z = start(2, 4, 8, 8)
    options = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    cond, null = of_text(pipeline)
    pipeline.scheduler.set_timesteps(STEPS)
    found = ours(pipeline, pipeline.unet, z, cond, null)
    tiny.close_to(found, lambda z: pipeline(PROMPTS, latents=z, **options).images, z)


@torch.no_grad()
def test_stable_diffusion_xl():
    pipeline = tiny.stable_diffusion_xl()
    z = start(2, 4, 8, 8)
    options = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    cond, null = of_pooled_text(pipeline, "text_embeds", PROMPTS)
    cond["time_ids"] = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, -1)
    pipeline.scheduler.set_timesteps(STEPS)
    found = ours(pipeline, pipeline.unet, z, cond, null)
    tiny.close_to(found, lambda z: pipeline(PROMPTS, latents=z, **options).images, z)


@torch.no_grad()
def test_a_controlnet():
    pipeline = tiny.stable_diffusion_controlnet()
    z, picture = start(2, 4, 8, 8), start(2, 3, 16, 16).clamp(0, 1)
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    cond, null = of_text(pipeline)
    cond["controlnet_cond"] = picture
    pipeline.scheduler.set_timesteps(STEPS)
    found = ours(pipeline, pipeline.unet, z, cond, null, controlnet=pipeline.controlnet)
    tiny.close_to(found, lambda z: pipeline(PROMPTS, image=picture, latents=z, **options).images, z)


@torch.no_grad()
def test_stable_diffusion_3():
    pipeline = tiny.stable_diffusion_3()
    z = start(2, 4, 8, 8)
    options = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    theirs = pipeline(PROMPTS, latents=z, **options).images
    cond, null = of_pooled_text(pipeline, "pooled_projections", PROMPTS, PROMPTS, PROMPTS)
    close(ours(pipeline, pipeline.transformer, z, cond, null, Euler()), theirs)


@pytest.mark.parametrize("height", [16, 32])
@torch.no_grad()
def test_flux(height):
    """Its shift depends on the size; its guidance is told, not computed."""
    pipeline = tiny.flux_1()
    z = start(2, 4, height // 2, 8)
    row = pipeline._pack_latents(z, *z.shape)
    options = {"height": height, "width": 16, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    theirs = pipeline._unpack_latents(pipeline(PROMPTS, latents=row, **options).images, height, 16, 2)
    states, pooled, _ = pipeline.encode_prompt(PROMPTS, PROMPTS, device="cpu")
    cond = {"encoder_hidden_states": states, "pooled_projections": pooled, "guidance": torch.full((2,), SCALE)}
    close(ours(pipeline, pipeline.transformer, z, cond, {}, Euler(), scale=1, size=(height // 2, 8)), theirs)


@torch.no_grad()
def test_flux_without_guidance_embedding():
    """FLUX.1 schnell's kind, guided by two calls."""
    pipeline = tiny.flux_1(guidance=False)
    z = start(2, 4, 8, 8)
    row = pipeline._pack_latents(z, *z.shape)
    own = {"height": 16, "width": 16, "num_inference_steps": STEPS, "output_type": "latent"}
    guided = pipeline(PROMPTS, negative_prompt=["", ""], true_cfg_scale=SCALE, latents=row, **own).images
    states, pooled, _ = pipeline.encode_prompt([*PROMPTS, ""], [*PROMPTS, ""], device="cpu")
    both = {"encoder_hidden_states": states, "pooled_projections": pooled}
    cond, null = ({name: x[rows] for name, x in both.items()} for rows in (slice(0, 2), slice(2, 3)))
    z = ours(pipeline, pipeline.transformer, z, cond, null, Euler(), size=8)
    close(z, pipeline._unpack_latents(guided, 16, 16, 2))


@torch.no_grad()
def test_pixart():
    pipeline = tiny.pixart_sigma()
    z = start(2, 4, 8, 8)
    own = {"height": 16, "width": 16, "use_resolution_binning": False, "num_inference_steps": STEPS, "clean_caption": False}
    theirs = pipeline(PROMPTS, latents=z, guidance_scale=SCALE, output_type="latent", **own).images
    cond, null = of_masked_text(pipeline)
    close(ours(pipeline, pipeline.transformer, z, cond, null), theirs, 1e-4)


@torch.no_grad()
def test_sana():
    pipeline = tiny.sana_1()
    z = start(2, 4, 16, 16)
    own = {"height": 32, "width": 32, "use_resolution_binning": False, "num_inference_steps": STEPS, "clean_caption": False}
    theirs = pipeline(
        PROMPTS, latents=z, guidance_scale=SCALE, output_type="latent", complex_human_instruction=None, **own
    ).images
    cond, null = of_masked_text(pipeline)
    close(ours(pipeline, pipeline.transformer, z, cond, null, Euler()), theirs)


@torch.no_grad()
def test_dit():
    """Its pipeline gives no latents: they are decoded by its own autoencoder."""
    pipeline = tiny.dit_xl()
    generator = torch.Generator().manual_seed(0)
    theirs = pipeline([207, 3], SCALE, generator, STEPS, output_type="pt").images
    z = torch.randn(2, 4, 8, 8, generator=generator.manual_seed(0))
    own = ours(pipeline, pipeline.transformer, z, {"label": torch.tensor([207, 3])}, {"label": 1000})
    images = pipeline.vae.decode(own / pipeline.vae.config.scaling_factor).sample
    close((images / 2 + 0.5).clamp(0, 1), torch.as_tensor(theirs))


def test_the_steps_of_other_schedulers():
    """The times of a solver with Karras's sigmas lie between the points of the table."""
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    schedule = xhat.Discrete.from_diffusers(scheduler)
    assert scheduler_times(schedule, scheduler).tolist() == [i / 10 for i in range(10, -1, -1)]
