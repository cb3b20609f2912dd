"""Samples of a network that is compiled while they are drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import xhat
from xhat.data.shape import DataShape
from xhat.diffusion.denoiser import Denoiser
from xhat.diffusion.schedules import Cosine
from xhat.diffusion.targets import V
from xhat.errors import RunError
from xhat.sampling.generate import generate
from xhat.sampling.samplers import DDIM
from xhat.sampling.spacings import uniform_times

SHAPE = DataShape(1, 8, None)


class Counted(nn.Module):
    """A network whose compiler counts its graphs, or fails."""

    def __init__(self, fails=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fails, self.graphs = nn.Conv2d(1, 1, 3, padding=1), fails, []

    def compile(self, **options):
        def backend(graph, inputs):
            if self.fails:
                raise RuntimeError("no C++ compiler\nand a long story")
            self.graphs.append([tuple(x.shape) for x in inputs if x.ndim == 4])
            return graph.forward

        super().compile(backend=backend, **options)

    def forward(self, z, t):
        return self.conv(z)


def drawn(net, n, **options):
    denoiser = Denoiser(net, Cosine(), V)
    return generate(denoiser, DDIM(), SHAPE, n, times=uniform_times(denoiser.schedule, 3), **options)[0]


@pytest.mark.parametrize(("n", "rows"), [(7, 4), (11, 4), (4, 4), (5, 2), (6, 5)])
def test_all_batches_have_one_shape_and_are_compiled_once(n, rows):
    torch._dynamo.reset()
    net = Counted()
    found = drawn(net, n, batch=rows, compile=True)
    assert len(net.graphs) == 1
    assert net._compiled_call_impl is None, "as before"
    assert torch.equal(found, drawn(net, n, batch=rows))
    assert len(found) == n


def test_samples_do_not_depend_on_the_batches():
    assert torch.equal(drawn(Counted(), 11, batch=4), drawn(Counted(), 11, batch=11))


def test_a_network_that_cannot_be_compiled_is_said_in_one_line():
    torch._dynamo.reset()
    net = Counted(fails=True)
    with pytest.raises(RunError, match=r"cannot be compiled here.*draw without compiling") as said:
        drawn(net, 3, compile=True)
    assert "\n" not in str(said.value)
    assert net._compiled_call_impl is None


@pytest.mark.slow
def test_by_the_command(mnist_run, tmp_path):
    both = []
    for options in ((), ("--compile",)):
        out = tmp_path / f"{len(options)}.npz"
        assert xhat("sample", mnist_run, "--n", 130, "--steps", 3, "--out", out, *options)[0] == 0
        both.append(np.load(out)["images"].astype(int))
    assert abs(both[0] - both[1]).max() <= 2, "levels of 255"
