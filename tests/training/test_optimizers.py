"""Muon on convolution kernels, and who gets which optimizer."""

import pytest
import torch

from xhat.config import OptimizerConfig
from xhat.networks.unet import UNet
from xhat.training.optimizers import KernelMuon, build_optimizers, learning_rate_factor


def test_a_kernel_moves_as_its_matrix_does_under_torchs_muon():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    ours, theirs = KernelMuon([kernel], lr=0.1, weight_decay=0.01), torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        theirs.step()
        ours.zero_grad()
    assert torch.equal(kernel.flatten(1), matrix)
    assert kernel.grad is None


def test_a_full_rank_update_is_nearly_orthogonal():
    """Jordan et al. 2024: the singular values of the update lie around 1, whatever those of the gradient."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    optimizer = KernelMuon([kernel], lr=1.0, weight_decay=0.0)
    kernel.grad = torch.randn(16, 72).mul(torch.logspace(-1, 1, 16).unsqueeze(1)).view_as(kernel)
    optimizer.step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_every_parameter_has_exactly_one_optimizer():
    network = UNet(widths=(8, 8), blocks=(1, 1), classes=2)
    adam, muon = build_optimizers(network, OptimizerConfig(muon_lr=0.02))
    by_adam = {id(p) for g in adam.param_groups for p in g["params"]}
    by_muon = {id(k) for k in muon.kernels}
    assert by_muon == {id(p) for p in network.hidden_matrices()}
    assert by_adam | by_muon == {id(p) for p in network.parameters()}
    assert not by_adam & by_muon
    assert len(build_optimizers(network, OptimizerConfig())) == 1


def test_learning_rate_warms_up_and_decays_to_zero():
    assert learning_rate_factor(0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate_factor(9, 0.0, 10) == 1
    assert learning_rate_factor(500, 0.5, 10) == pytest.approx(0.5)
    assert learning_rate_factor(1000, 1.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(0, 0.0, 0) == 1
