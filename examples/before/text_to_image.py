"""Full fine-tuning of a text-to-image UNet, in the shape of diffusers' train_text_to_image.py.

python examples/text_to_image.py PIPELINE DATA OUT [STEPS]
"""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from pictures import batches


def main(folder, data, out, steps=10, batch_size=4, learning_rate=1e-5, snr_gamma=5.0):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    unet, vae, text_encoder, tokenizer = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    vae.requires_grad_(False)
    text_encoder.requires_grad_(False)
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    vae.to(accelerator.device)
    text_encoder.to(accelerator.device)
    losses = []
    for pixel_values, captions in batches(data, 16, batch_size, steps):
        latents = vae.encode(pixel_values.to(accelerator.device)).latent_dist.sample() * vae.config.scaling_factor
        tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        encoder_hidden_states = text_encoder(tokens.to(accelerator.device), return_dict=False)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        model_pred = unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
        signal = noise_scheduler.alphas_cumprod.to(latents.device)[timesteps]
        snr = signal / (1 - signal)
        weights = snr.clamp(max=snr_gamma) / snr
        loss = (F.mse_loss(model_pred, noise, reduction="none").mean((1, 2, 3)) * weights).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    pipeline.unet = accelerator.unwrap_model(unet)
    pipeline.save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
