"""Peak memory counted by hand."""

import torch

import xhat
from oracles import SCHEDULES, SHAPE, ScaledX0
from xhat import DDIM, X0, Denoiser, Denoising, FullChain, ImageLoss, Objective, Term
from xhat.analysis.cost import cost, term_costs
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.memory import PeakBytes

KB = 1000 * 4  # a thousand float32


def test_storages_come_and_go():
    with PeakBytes() as counted:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b * 2
        assert (counted.now, counted.peak) == (2 * KB, 2 * KB)
        del b, c
        assert (counted.now, counted.peak) == (0, 2 * KB)


def test_views_and_in_place_operations_are_free():
    a = torch.zeros(1000)
    with PeakBytes() as counted:
        a.add_(1)
        b = a.view(10, 100)[2:]
        assert (counted.peak, b.numel()) == (0, 800)


def test_what_autograd_keeps_counts_until_the_backward_pass():
    w = torch.ones(1000, requires_grad=True)
    with PeakBytes() as counted:
        y = (w.exp().exp()).sum()  # both results are kept
        assert counted.now == 2 * KB + 4
        y.backward()
        del y
        assert counted.now == KB  # the gradient
    assert counted.peak >= 3 * KB


def test_cost_counts_the_step_alone():
    found = cost(lambda: torch.zeros(1000).add(1).sum(), torch.device("cpu"))
    assert found.bytes == 2 * KB
    assert found.seconds > 0


def test_a_checkpointed_chain_holds_one_call_and_its_stations():
    """Of a wide network: the naive chain keeps n calls' activations, the checkpointed one one call's."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(4, 4000) / 64)
            self.v = torch.nn.Parameter(torch.randn(4000, 4) / 64)

        def forward(self, z, t):
            return (torch.tanh(z.flatten(1) @ self.w) @ self.v).view_as(z)

    denoiser = Denoiser(Wide(), SCHEDULES["flow"](), X0)
    x0 = torch.zeros(16, *SHAPE)

    def terms(checkpoint):
        chain = ImageLoss(xhat.penalties.total_variation, FullChain(DDIM(), 20, AllSteps(), checkpoint=checkpoint))
        return {"denoise": Term(Denoising(space=X0)), "smooth": Term(chain)}

    ours = term_costs(Objective(denoiser, terms(True)), x0)
    naive = term_costs(Objective(denoiser, terms(False)), x0)
    assert ours["smooth"].bytes < 1.2 * ours["base"].bytes
    assert naive["smooth"].bytes > 5 * naive["base"].bytes


def test_costs_are_of_open_gates_and_leave_no_gradient():
    schedule = SCHEDULES["flow"]()
    image = Term(ImageLoss(xhat.penalties.total_variation), when=xhat.every(1000))
    objective = Objective(Denoiser(ScaledX0(schedule, X0), schedule, X0), {"d": Term(Denoising(space=X0)), "i": image})
    assert list(term_costs(objective, torch.zeros(4, *SHAPE, dtype=torch.float64))) == ["base", "i"]
