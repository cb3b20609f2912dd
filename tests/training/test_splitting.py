"""Which parts of a network are gathered one by one, and what cannot be trained so."""

import pytest
import torch
from torch import nn

import xhat
from xhat.config.options import Options
from xhat.diffusion.sharded import blocks_of
from xhat.errors import RunError
from xhat.training.splitting import gathered_alone

DENOISE = xhat.Term(xhat.Denoising(xhat.V))


def named(net):
    names = {id(module): name for name, module in net.named_modules()}
    return [names[id(block)] for block in blocks_of(net)]


def rest(net):
    """Share of the weights that no block holds."""
    held = {id(p) for block in blocks_of(net) for p in block.parameters()}
    return sum(p.numel() for p in net.parameters() if id(p) not in held) / sum(p.numel() for p in net.parameters())


def test_blocks_are_what_lists_hold():
    dit = xhat.DiT(size=8, width=16, depth=3, heads=2)
    assert named(dit) == ["embedding.mlp.0", "embedding.mlp.2", "blocks.0", "blocks.1", "blocks.2"]
    unet = xhat.UNet(size=16, widths=(16, 32), blocks=(2, 2))
    assert {"down.0.0", "bottom.0", "up.0.1"} <= set(named(unet))
    assert rest(unet) < 0.1


def test_a_large_block_is_taken_apart_before_it_is_one_itself():
    large = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.ModuleDict({"a": nn.Linear(8, 8)})])
    small = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(20)])
    assert named(nn.ModuleDict({"large": large})) == ["large.0.0", "large.0.1", "large.0"]  # a dictionary is not called
    assert named(nn.ModuleDict({"small": small}))[:2] == ["small.0", "small.1"]


def test_weights_that_parts_share_are_in_no_block():
    first, second, third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    assert named(nn.Sequential(first, second, third)) == ["2"]


class Bare(nn.Module):
    """Without a list."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 1)

    def forward(self, z, t):
        return self.mix(z)


@pytest.mark.parametrize(
    ("net", "more", "options", "message"),
    [
        (Bare(), {}, {}, "Bare has no blocks in a list .* take --shard true"),
        (None, {}, {"compile": "on"}, "block by block is not compiled: take --compile off, or --shard true"),
        (
            None,
            {"flat": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=xhat.multipliers.GradientRatio(0.1))},
            {},
            'the weight of term "flat" compares gradients',
        ),
    ],
)
def test_what_blocks_cannot_have_is_refused(net, more, options, message):
    net = net or xhat.UNet(size=8, widths=(8, 8), blocks=(1, 1), embedding=8)
    objective = xhat.Objective(xhat.Denoiser(net, xhat.Cosine(), xhat.V), {"denoise": DENOISE, **more})
    with pytest.raises(RunError, match=message):
        gathered_alone(objective, Options(max_steps=1, shard="blocks", **options))


def test_stacks_of_matrices_are_cut_where_they_grow_large(monkeypatch):
    """What is orthogonalized at a time changes no update."""
    found = []
    for most in (2**26, 100):
        monkeypatch.setattr("xhat.training.optimizers.STACKED", most)
        torch.manual_seed(0)
        kernels = [nn.Parameter(torch.randn(6, 8)) for _ in range(5)]
        for kernel in kernels:
            kernel.grad = torch.randn(6, 8)
        xhat.training.optimizers.KernelMuon(kernels, lr=0.1).step()
        found.append(torch.stack([k.detach() for k in kernels]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
