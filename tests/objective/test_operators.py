"""What an objective adds to the network's own step: operators, and tensors as large as the batch."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine, Discrete
from xhat.diffusion.targets import X0, V
from xhat.diffusion.times import Uniform
from xhat.diffusion.weightings import min_snr
from xhat.losses.denoising import Denoising
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import total_variation
from xhat.objective.objective import Objective
from xhat.objective.terms import Term

ROWS, SIZE = 64, (1, 8, 8)


class Counted(TorchDispatchMode):
    """Operators, and those of them that make a tensor of a batch's size: views and what is written in place make none."""

    def __init__(self):
        super().__init__()
        self.operators, self.large = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata not in before:
            self.large += out.untyped_storage().nbytes() >= 4 * ROWS * 64
        return out


class Net(nn.Module):
    """Two operators, one backward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z, t):
        return self.weight * z


PLAIN = Term(Denoising(V))
OBJECTIVES = {
    "plain": lambda: Objective(Denoiser(Net(), Cosine(), V), {"denoise": PLAIN}),
    "min-snr": lambda: Objective(
        Denoiser(Net(), Discrete.cosine_beta(), X0), {"denoise": Term(Denoising(X0, min_snr(5)))}, Uniform()
    ),
    "penalty": lambda: Objective(
        Denoiser(Net(), Cosine(), V), {"denoise": PLAIN, "smooth": Term(ImageLoss(total_variation), weight=0.05)}
    ),
}


@pytest.mark.parametrize(("name", "operators", "large"), [("plain", 60, 9), ("min-snr", 111, 7), ("penalty", 158, 24)])
def test_a_step_takes_no_more_than_it_did(name, operators, large):
    """Forward and backward, drawing included. Of the large ones the network makes three, and the noise is one."""
    objective, x0 = OBJECTIVES[name](), torch.randn(ROWS, *SIZE)
    objective(x0, step=0)["loss"].backward()  # what is looked at once
    with Counted() as counted:
        objective(x0, step=1)["loss"].backward()
    assert counted.operators <= operators
    assert counted.large <= large
