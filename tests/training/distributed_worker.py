"""Run by torchrun in test_distributed.py: one step on each rank, what was drawn and the gradients in a file per rank."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from xhat import Denoiser, Denoising, Objective, Shard, Term, V
from xhat.diffusion.schedules import Discrete
from xhat.diffusion.times import LossSecondMoment
from xhat.networks.unet import UNet

TOTAL = 8


def step(rank: int, world: int, prepare) -> dict[str, torch.Tensor]:
    """Two micro-batches of one step; a function of rank and world alone."""
    torch.manual_seed(0)
    network = UNet(widths=(8, 8), blocks=(1, 1), embedding=16, size=8)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    denoiser = Denoiser(network, Discrete.linear_beta(4), V)
    objective = Objective(denoiser, {"denoise": Term(Denoising(V))}, LossSecondMoment(history=1), seed=5)
    model = prepare(objective)
    data = torch.randn(TOTAL, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    rows, drawn, losses = TOTAL // world // 2, [], []
    for part in range(2):
        shard = Shard((part * world + rank) * rows, TOTAL)
        x0 = data[shard.first : shard.first + rows]
        draw = objective.draw(x0, step=3, shard=shard)
        drawn.append(torch.cat([draw.noise.flatten(1), draw.t.unsqueeze(1)], 1).detach())
        loss = model(x0, step=3, shard=shard)["loss"]
        (loss / 2).backward()
        losses.append(loss.detach())
    plain = objective.draw(data[rank * TOTAL // world : (rank + 1) * TOTAL // world], step=4)  # no shard: by rank
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return {
        "drawn": torch.stack(drawn),
        "plain": plain.noise.flatten(1),
        "loss": torch.stack(losses).mean(),
        "gradient": gradient,
        "history": objective.times.losses,
    }


if __name__ == "__main__":
    from safetensors.torch import save_file

    accelerator = Accelerator(cpu=True)
    result = step(accelerator.process_index, accelerator.num_processes, accelerator.prepare)
    mean = result["loss"].clone()
    dist.all_reduce(mean)
    result["loss"] = mean / accelerator.num_processes
    save_file(result, Path(sys.argv[1]) / f"rank{os.environ['RANK']}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()
