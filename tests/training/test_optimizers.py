"""Muon on convolution kernels, and who gets which optimizer."""

import pytest
import torch

from xhat.config.options import OptimizerConfig
from xhat.networks.unet import UNet
from xhat.training.optimizers import KernelMuon, build_optimizers, orthogonalized


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (12, 2, 1, 1), (5, 5)])
def test_a_kernel_moves_as_its_matrix_does_under_torchs_muon(shape):
    """PyTorch's own, whose iteration runs in bf16: equal to bf16's precision, over several steps with momentum and decay."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(shape))
    start = kernel.detach().clone()
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    ours, theirs = KernelMuon([kernel], lr=0.1, weight_decay=0.01), torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    moved = (kernel - start).flatten(1)
    assert (moved - (matrix - start.flatten(1))).norm() < 0.03 * moved.norm()


def test_orthogonalized_keeps_the_singular_vectors():
    """U S V^T becomes U D V^T with D near 1, tall or wide, each matrix of a stack by itself."""
    torch.manual_seed(0)
    for rows, columns in ((8, 20), (20, 8)):
        stack = torch.randn(3, rows, columns) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
        u, _, vh = torch.linalg.svd(stack, full_matrices=False)
        inner = u.mT @ orthogonalized(stack) @ vh.mT
        diagonal = inner.diagonal(dim1=1, dim2=2)
        assert diagonal.min() > 0.5
        assert diagonal.max() < 1.3
        assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_every_parameter_has_exactly_one_optimizer():
    network = UNet(widths=(8, 8), blocks=(1, 1), classes=2)
    adam, muon = build_optimizers(network, OptimizerConfig(muon_lr=0.02))
    by_adam = {id(p) for g in adam.param_groups for p in g["params"]}
    by_muon = {id(k) for g in muon.param_groups for k in g["params"]}
    assert by_muon == {id(p) for p in network.hidden_matrices()}
    assert by_adam | by_muon == {id(p) for p in network.parameters()}
    assert not by_adam & by_muon
    assert len(build_optimizers(network, OptimizerConfig())) == 1
