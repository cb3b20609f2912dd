"""Contrastive flow matching, against its formula and its optimum."""

import pytest
import torch

from oracles import SHAPE
from xhat import FLOW, Denoiser, Denoising, Flow, Objective, Term
from xhat.losses.contrast import Contrastive
from xhat.losses.norms import absolute


class Constant(torch.nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, z, t):
        return self.value.expand(z.shape)


@pytest.mark.parametrize("rows", [4, 5])
def test_it_is_the_papers_formula(rows, rng):
    denoiser = Denoiser(Constant(0.3), Flow(), FLOW)
    x0 = torch.randn(rows, *SHAPE, dtype=torch.float64, generator=rng)
    objective = Objective(denoiser, {"own": Term(Contrastive(Denoising(FLOW), 0.2))})
    draw = objective.draw(x0, step=0)
    y = draw.noise - x0
    other = y[[1, 0, 3, 2, 3][:rows]]
    want = (0.3 - y).square().flatten(1).mean(1) - 0.2 * (0.3 - other).square().flatten(1).mean(1)
    torch.testing.assert_close(objective.per_image("own", draw), want)


def test_its_optimum_goes_away_from_the_mean_of_all(rng):
    """Of a constant prediction: the mean of y, as (m - s M)/(1 - s) with m = M; of two conditions each goes further out."""

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, z, t, label):
            return self.value[label].reshape(-1, 1, 1, 1).expand(z.shape)

    net, strength = Told(), 0.2
    objective = Objective(Denoiser(net, Flow(), FLOW), {"own": Term(Contrastive(Denoising(FLOW), strength))})
    label = torch.arange(4096) // 2 % 2  # pairs of neighbours are alike half of the time
    label = label[torch.randperm(4096, generator=rng)]
    x0 = torch.where(label.bool(), 1.0, -1.0).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(60):
        optimizer.zero_grad()
        objective(x0, cond={"label": label}, step=step)["loss"].backward()
        optimizer.step()
    m = torch.tensor([1.0, -1.0], dtype=torch.float64)  # the mean velocity noise - x0 of each
    torch.testing.assert_close(net.value.detach(), m / (1 - strength), rtol=0.06, atol=0)


def test_no_strength_is_the_loss_itself(rng):
    denoiser = Denoiser(Constant(0.3), Flow(), FLOW)
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64, generator=rng)
    draw = Objective(denoiser, {"own": Term(Denoising(FLOW))}).draw(x0, step=0)
    torch.testing.assert_close(Contrastive(Denoising(FLOW), 0.0)(denoiser, draw), Denoising(FLOW)(denoiser, draw))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="goes around Denoising"):
        Contrastive(Denoising(norm=absolute))
    with pytest.raises(ValueError, match="below 1"):
        Contrastive(Denoising(), 1.0)
    denoiser = Denoiser(Constant(), Flow(), FLOW)
    with pytest.raises(ValueError, match="two or more"):
        Contrastive(Denoising(FLOW))(
            denoiser, Objective(denoiser, {"d": Term(Denoising())}).draw(torch.zeros(1, *SHAPE), step=0)
        )
