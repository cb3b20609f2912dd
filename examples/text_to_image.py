"""Full fine-tuning of a text-to-image UNet, in the shape of diffusers' train_text_to_image.py.

python examples/text_to_image.py PIPELINE DATA OUT [STEPS]
"""

import sys

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from pictures import batches

import xhat


def main(folder, data, out, steps=10, batch_size=4, learning_rate=1e-5, snr_gamma=5.0):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    unet, vae, text_encoder, tokenizer = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    vae.requires_grad_(False)
    text_encoder.requires_grad_(False)
    unet.train()
    denoise = xhat.Denoising(xhat.X0, xhat.min_snr(snr_gamma))  # min(SNR, gamma)/SNR on the noise
    objective = xhat.Objective(xhat.from_diffusers(unet, noise_scheduler), {"denoise": xhat.Term(denoise)})
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    vae.to(accelerator.device)
    text_encoder.to(accelerator.device)
    losses = []
    for pixel_values, captions in batches(data, 16, batch_size, steps):
        latents = vae.encode(pixel_values.to(accelerator.device)).latent_dist.sample() * vae.config.scaling_factor
        tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        encoder_hidden_states = text_encoder(tokens.to(accelerator.device), return_dict=False)[0]
        loss = objective(latents, cond={"encoder_hidden_states": encoder_hidden_states})["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    pipeline.save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
