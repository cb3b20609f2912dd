"""An unconditional pixel model from nothing, in the shape of diffusers' train_unconditional.py.

python examples/unconditional.py DATA OUT [STEPS]
"""

import sys

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from pictures import batches

import xhat


def main(data, out, steps=10, batch_size=4, learning_rate=1e-4, resolution=16):
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    model = UNet2DModel(sample_size=resolution, in_channels=3, out_channels=3, **blocks, **sizes)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    objective = xhat.Objective(xhat.from_diffusers(model, noise_scheduler), {"denoise": xhat.Term(xhat.Denoising())})
    objective, optimizer = accelerator.prepare(objective, optimizer)
    ema = EMAModel(model.parameters())
    losses = []
    for clean_images, _ in batches(data, resolution, batch_size, steps):
        clean_images = clean_images.to(accelerator.device)
        loss = objective(clean_images)["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(loss.item())
    ema.copy_to(model.parameters())
    DDPMPipeline(model, noise_scheduler).save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:3], *map(int, sys.argv[3:])))
