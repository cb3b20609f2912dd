"""The optimizers of a run: AdamW, and Muon for the hidden matrices of networks that name them."""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from xhat.config import OptimizerConfig


@runtime_checkable
class HasHiddenMatrices(Protocol):
    """A network that says which of its weights map hidden channels to hidden channels."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those weights."""
        ...


class KernelMuon(torch.optim.Muon):
    """PyTorch's Muon (Jordan et al. 2024) for convolution kernels too: each acts as the matrix (out, in · height · width).

    Args:
        kernels: parameters with two or more axes; the matrices are views of them.
        lr: learning rate at a square matrix.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, kernels: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.kernels = kernels
        self.matrices = [nn.Parameter(k.detach().flatten(1)) for k in kernels]
        if any(m.data_ptr() != k.data_ptr() for m, k in zip(self.matrices, kernels, strict=True)):
            raise ValueError("Muon needs contiguous weights, whose flattened form is a view")
        super().__init__(self.matrices, lr=lr, weight_decay=weight_decay)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the kernels' gradients."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of kernels and matrices."""
        for parameter in (*self.kernels, *self.matrices):
            parameter.grad = None


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for all parameters, or Muon for those that `hidden_matrices()` of a submodule lists and AdamW for the rest."""
    hidden: list[nn.Parameter] = []
    if config.muon_lr > 0:
        for module in model.modules():
            if isinstance(module, HasHiddenMatrices):
                hidden += module.hidden_matrices()
    known = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in known]
    optimizers: list[Optimizer] = [AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)]
    if hidden:
        optimizers.append(KernelMuon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up times a cosine decay to zero.

    Args:
        step: 0-based step about to be taken.
        progress: share of the budget that is spent, in [0, 1].
        warmup_steps: length of the warm-up.
    """
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
