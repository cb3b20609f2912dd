"""DreamBooth on Stable Diffusion 3 with prior preservation, in the shape of diffusers' train_dreambooth_sd3.py.

python examples/dreambooth_sd3.py PIPELINE DATA CLASS_DATA OUT [STEPS]
"""

import sys

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from pictures import batches

import xhat


def main(folder, data, class_data, out, steps=10, batch_size=2, learning_rate=1e-4, prior_loss_weight=1.0):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    noise_scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    transformer, vae = pipeline.transformer, pipeline.vae
    vae.requires_grad_(False)
    times = xhat.times.LogitNormal()
    denoise = xhat.Denoising(xhat.FLOW, xhat.weightings.from_density(times))  # as often as SD3 draws them, unweighted
    terms = {"denoise": xhat.Term(denoise), "prior": xhat.Term(xhat.OnOthers(denoise), weight=prior_loss_weight)}
    objective = xhat.Objective(xhat.from_diffusers(transformer, noise_scheduler), terms, times)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=learning_rate)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    vae.to(accelerator.device)
    losses = []
    pairs = zip(batches(data, 16, batch_size, steps), batches(class_data, 16, batch_size, steps), strict=True)
    for (instance, prompts), (others, class_prompts) in pairs:
        pixel_values = torch.cat([instance, others]).to(accelerator.device)
        with torch.no_grad():
            codes = vae.encode(pixel_values).latent_dist.sample()
            embeds, _, pooled, _ = pipeline.encode_prompt([*prompts, *class_prompts], None, None, device=accelerator.device)
        model_input = (codes - vae.config.shift_factor) * vae.config.scaling_factor
        cond = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
        (own, others), n = model_input.chunk(2), len(instance)
        prior = {"prior": others, "prior_cond": {name: value[n:] for name, value in cond.items()}}
        loss = objective(own, cond={name: value[:n] for name, value in cond.items()}, extra=prior)["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    pipeline.save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:5], *map(int, sys.argv[5:])))
