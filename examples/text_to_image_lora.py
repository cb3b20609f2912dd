"""A LoRA on a text-to-image UNet, in the shape of diffusers' train_text_to_image_lora.py.

python examples/text_to_image_lora.py PIPELINE DATA OUT [STEPS]
"""

import sys

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pictures import batches

import xhat


def main(folder, data, out, steps=10, batch_size=4, learning_rate=1e-4, rank=4):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    unet, vae, text_encoder, tokenizer = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    for model in (unet, vae, text_encoder):
        model.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    lora_layers = [p for p in unet.parameters() if p.requires_grad]
    objective = xhat.Objective(xhat.from_diffusers(unet, noise_scheduler), {"denoise": xhat.Term(xhat.Denoising())})
    optimizer = torch.optim.AdamW(lora_layers, lr=learning_rate)
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
        accelerator.clip_grad_norm_(lora_layers, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=weights)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
