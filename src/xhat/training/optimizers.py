"""The optimizers of a run: AdamW, and Muon for the hidden matrices of networks that name them."""

import math
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from xhat.config.options import OptimizerConfig
from xhat.diffusion.sharded import joined, part, split_like

STACKED = 2**26
"""Numbers of the matrices that are orthogonalized at a time; of split ones so many are whole."""


@runtime_checkable
class HasHiddenMatrices(Protocol):
    """A network that says which of its weights map hidden channels to hidden channels."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those weights."""
        ...


class KernelMuon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, orthogonalized, for matrices and for kernels as matrices (out, in · height · width).

    W <- (1 - lr · weight_decay) W - lr sqrt(max(1, rows/columns)) orthogonalized(g + momentum (m - g)), m the average of g.
    PyTorch's Muon takes matrices only and iterates in bf16, which is slow on a CPU without bf16 instructions; here equal
    shapes are stacked, and iterate in float32 on a CPU.

    Args:
        kernels: parameters with two or more axes.
        lr: learning rate at a square matrix.
        weight_decay: decoupled weight decay.
        momentum: of the moving average, with Nesterov's look-ahead.

    Attributes:
        found_inf: as of PyTorch's fused optimizers: where this is 1, (), a step changes nothing; None is 0.
    """

    found_inf: Tensor | None = None

    def __init__(self, kernels: list[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        if any(k.ndim < 2 for k in kernels):
            raise ValueError("Muon is for matrices and kernels: leave vectors to AdamW")
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            kernels = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in kernels]
            for p in kernels:
                if "average" not in self.state[p]:
                    self.state[p]["average"] = torch.zeros_like(p)
            averages = [part(self.state[p]["average"]) for p in kernels]
            gradients, parts = [part(g) for g in gradients], [part(p) for p in kernels]
            before = averages if self.found_inf is None else [a.clone() for a in averages]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            own = torch._foreach_lerp(gradients, averages, group["momentum"])
            decay = group["lr"] * group["weight_decay"]
            if self.found_inf is None:
                torch._foreach_mul_(parts, 1 - decay)
            else:
                torch._foreach_mul_(parts, 1 - decay * (1 - self.found_inf))
                for average, old in zip(averages, before, strict=True):
                    average.copy_(torch.where(self.found_inf == 0, average, old))
            for same in _stacks([p.flatten(1).shape for p in kernels]):
                ahead = [joined(own[i], kernels[i]).flatten(1) for i in same]  # all of a matrix is orthogonalized
                rows, columns = ahead[0].shape
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                updates = orthogonalized(torch.stack(ahead))
                if self.found_inf is not None:
                    updates = torch.where(self.found_inf == 0, updates, 0.0)
                for i, update in zip(same, updates, strict=True):
                    parts[i].sub_(part(split_like(update.view(kernels[i].shape), kernels[i])), alpha=rate)


def _stacks(shapes: list[torch.Size]) -> Iterator[list[int]]:
    """Numbers of matrices of one shape, as many at a time as there is room for."""
    for shape in dict.fromkeys(shapes):
        same = [i for i, s in enumerate(shapes) if s == shape]
        most = max(1, STACKED // shape.numel())
        yield from (same[k : k + most] for k in range(0, len(same), most))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly U V^T of each matrix U S V^T of a stack (N, rows, columns), by five quintic Newton-Schulz steps.

    The coefficients are Jordan et al.'s: all singular values end between about 0.7 and 1.2.
    """
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if wide else x.mT).to(matrices.dtype)


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for all that learns, or Muon for what `hidden_matrices()` of a submodule lists and AdamW for the rest."""
    hidden: list[nn.Parameter] = []
    if config.muon_lr > 0:
        for module in model.modules():
            if isinstance(module, HasHiddenMatrices):
                hidden += module.hidden_matrices()
    known = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    vectors = {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}  # biases, gains, learned scalars
    matrices = {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay}
    groups = [group for group in (matrices, vectors) if group["params"]]
    optimizers: list[Optimizer] = [AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]
    if hidden:
        optimizers.append(KernelMuon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers
