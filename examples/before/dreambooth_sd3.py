"""DreamBooth on Stable Diffusion 3 with prior preservation, in the shape of diffusers' train_dreambooth_sd3.py.

python examples/dreambooth_sd3.py PIPELINE DATA CLASS_DATA OUT [STEPS]
"""

import sys

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from pictures import batches


def main(folder, data, class_data, out, steps=10, batch_size=2, learning_rate=1e-4, prior_loss_weight=1.0):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    noise_scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    transformer, vae = pipeline.transformer, pipeline.vae
    vae.requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=learning_rate)
    transformer, optimizer = accelerator.prepare(transformer, optimizer)
    vae.to(accelerator.device)
    losses = []
    pairs = zip(batches(data, 16, batch_size, steps), batches(class_data, 16, batch_size, steps), strict=True)
    for (instance, prompts), (others, class_prompts) in pairs:
        pixel_values = torch.cat([instance, others]).to(accelerator.device)
        with torch.no_grad():
            codes = vae.encode(pixel_values).latent_dist.sample()
            embeds, _, pooled, _ = pipeline.encode_prompt([*prompts, *class_prompts], None, None, device=accelerator.device)
        model_input = (codes - vae.config.shift_factor) * vae.config.scaling_factor
        noise = torch.randn_like(model_input)
        u = torch.sigmoid(torch.randn(len(model_input)))  # logit-normal
        indices = (u * noise_scheduler.config.num_train_timesteps).long()
        timesteps = noise_scheduler.timesteps[indices].to(model_input.device)
        sigmas = noise_scheduler.sigmas[indices].to(model_input.device).reshape(-1, 1, 1, 1)
        noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
        model_pred = transformer(
            hidden_states=noisy_model_input,
            timestep=timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        error = (model_pred - (noise - model_input)).square()
        of_instance, of_class = error.chunk(2)
        loss = of_instance.mean() + prior_loss_weight * of_class.mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    pipeline.transformer = accelerator.unwrap_model(transformer)
    pipeline.save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:5], *map(int, sys.argv[5:])))
