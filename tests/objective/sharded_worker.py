"""Run by torchrun in test_sharded_objective.py: a loop of somebody's own, with `fully_shard`; what it found, in a file."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import xhat

ROWS, SIDE = 8, 8


def found(prepare, share: slice, *, compares: bool = True) -> dict[str, torch.Tensor]:
    """Three steps of a loop, and what is asked of a model beside it.

    Args:
        prepare: wraps the objective.
        share: of the batch.
        compares: gradients of terms, too, which takes those of all weights at once.
    """
    torch.manual_seed(0)
    network = xhat.UNet(widths=(8, 8), blocks=(1, 1), embedding=16, size=SIDE)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    chain = xhat.ImageLoss(brightness, xhat.FullChain(xhat.DDIM(), 3, xhat.differentiate.AllSteps()))
    terms = {
        "denoise": xhat.Term(xhat.Denoising()),
        "chain": xhat.Term(chain, weight=xhat.multipliers.DualAscent(0.1)),
    }
    comparing = {
        "flat": xhat.Term(xhat.ImageLoss(brightness), weight=xhat.multipliers.GradientRatio(0.1, every=1)),
        "free": xhat.Term(xhat.ImageLoss(brightness), weight=xhat.multipliers.ConflictFree(0.2)),
    }
    terms |= comparing if compares else {}
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), terms, seed=5)
    x0 = torch.randn(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    prepare(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)
    kept = {}
    for step in range(3):
        losses = objective(x0[share], step=step)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        kept |= {f"{step} {name}": mean(value) for name, value in losses.items()}
    draw = objective.draw(x0[share], step=9)
    kept["draw"] = mean(draw.prediction.x0.square().mean())
    if compares:
        profile = xhat.gradient_profile(objective, x0[share], logsnr=torch.tensor([2.0, 0.0]), steps=3)
        kept["profile"] = torch.tensor([[term.norm, term.cosine] for term in profile.terms.values()])
    noise = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    kept["samples"] = xhat.sample(objective.denoiser, xhat.DDIM(), noise, xhat.uniform_times(objective.denoiser.schedule, 4))
    state = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in objective.state_dict().items()}
    return kept | {f"weights {name}": value for name, value in state.items()}


def brightness(images):
    return (images + 1).square().flatten(1).mean(1)


def mean(value):
    value = value.detach().clone().float()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def by_parts(objective):
    """What a user of FSDP2 writes for a network that fits on no device."""
    from torch.distributed.fsdp import fully_shard

    net = objective.denoiser.net
    for part in (*net.down[0], *net.bottom, *net.up[0]):
        fully_shard(part)
    fully_shard(objective, reshard_after_forward=False)


if __name__ == "__main__":
    from safetensors.torch import save_file
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    if sys.argv[2] == "whole":
        result = found(lambda objective: fully_shard(objective, reshard_after_forward=False), mine)
    else:
        result = found(by_parts, mine, compares=False)
    save_file({name: value.contiguous() for name, value in result.items()}, Path(sys.argv[1]) / f"{rank}.safetensors")
    dist.barrier()
    os._exit(0)  # threads of gloo may abort an interpreter that is taken down
