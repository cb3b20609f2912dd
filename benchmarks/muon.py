"""Milliseconds of a Muon update of the demo's network, ours beside PyTorch's: python benchmarks/muon.py [ROUNDS]

With ONEDNN_MAX_CPU_ISA=AVX2 in the environment it shows a CPU without bf16 instructions.
"""

import statistics
import time

import torch
from torch import nn
from usage import counts

from xhat.networks.unet import UNet
from xhat.training.optimizers import KernelMuon


def main(rounds: int) -> None:
    torch.manual_seed(0)
    kernels = UNet(classes=10).hidden_matrices()
    matrices = [nn.Parameter(k.detach().flatten(1).clone()) for k in kernels]
    for kernel, matrix in zip(kernels, matrices, strict=True):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1)
    steps = {"ours": KernelMuon(kernels, lr=1e-6).step, "PyTorch's": torch.optim.Muon(matrices, lr=1e-6).step}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()  # type: ignore[no-untyped-call]
            seconds[name].append(time.perf_counter() - start)
    ours, theirs = (1e3 * statistics.median(values) for values in seconds.values())
    print(f"ours {ours:.1f} ms, PyTorch's {theirs:.1f} ms, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main(*counts(rounds=30))
