"""Objectives of chains alone: no clean samples, no network call that nobody reads."""

import pytest
import torch
from torch import nn

from xhat import DDIM, Cosine, Denoiser, Denoising, FullChain, ImageLoss, Last, Objective, Rollout, Surrogate, Term, V, every
from xhat.diffusion.times import LossSecondMoment
from xhat.objective.terms import Loss
from xhat.sampling.differentiate import AllSteps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls = nn.Linear(3, 3), []

    def forward(self, z, t, label=None):
        self.calls.append(torch.is_grad_enabled())
        return self.layer(z) + (0 if label is None else label.to(z).unsqueeze(1))


def objective(image, **more):
    net = Net()
    terms = {"small": Term(ImageLoss(lambda x: x.square().mean(1), image, expect=None)), **more}
    return Objective(Denoiser(net, Cosine(), V), terms), net.calls


@pytest.mark.parametrize(
    ("differentiate", "checkpoint", "again"),
    [(Last(2), True, 2), (Last(2), False, 0), (AllSteps(), True, 5), (Surrogate(2), False, 2)],
    ids=["last", "kept", "all", "surrogate"],
)
def test_k_steps_are_k_calls_and_recomputation(differentiate, checkpoint, again):
    """A surrogate takes its steps once more, with a gradient."""
    ours, calls = objective(FullChain(DDIM(), steps=5, differentiate=differentiate, checkpoint=checkpoint))
    ours(shape=(4, 3))["loss"].backward()
    assert len(calls) == 5 + again
    calls.clear()
    ours(torch.randn(4, 3))["loss"].backward()
    assert len(calls) == 5 + again


def test_the_values_are_those_with_samples():
    """Of the same step, shape and condition: chains see neither the samples nor their times."""
    ours, _ = objective(FullChain(DDIM(), steps=3))
    label = torch.arange(4)
    ours.eval()  # where a step may be asked for twice
    with_samples = ours(torch.randn(4, 3), step=7, cond={"label": label})
    without = ours(shape=(4, 3), step=7, cond={"label": label})
    assert torch.equal(with_samples["loss"], without["loss"])
    assert not torch.equal(ours(shape=(4, 3), step=8, cond={"label": label})["loss"], without["loss"])


def test_fresh_draws_and_gates_count_as_with_samples():
    ours, calls = objective(FullChain(DDIM(), steps=3))
    assert ours(shape=(4, 3))["loss"] != ours(shape=(4, 3))["loss"]
    ours.terms["small"] = Term(ours.terms["small"].loss, when=every(2))
    calls.clear()
    out = ours(shape=(4, 3), step=1)
    assert (list(out), calls) == (["loss"], [])
    out["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


class Reads(Loss):
    """Says that it starts from pure noise, and reads the prediction all the same."""

    at_drawn_time = False

    def forward(self, denoiser, draw):
        return draw.prediction.x0.mean(1)


def test_who_needs_samples_is_named():
    chain = FullChain(DDIM(), steps=3)
    for more, why in (
        ({"denoise": Term(Denoising())}, 'term "denoise" is of clean samples: give x0'),
        ({"roll": Term(ImageLoss(lambda x: x.mean(1), Rollout(), expect=None))}, 'term "roll" is of clean samples'),
        ({"reads": Term(Reads())}, 'term "reads": it reads the prediction at the drawn time'),
    ):
        ours, _ = objective(chain, **more)
        with pytest.raises(ValueError, match=why):
            ours(shape=(4, 3))
    with pytest.raises(ValueError, match=r"give clean samples x0; or, .* their shape=\(B, ...\) alone"):
        objective(chain)[0]()
    gated, _ = objective(chain, denoise=Term(Denoising(), when=every(2)))
    gated(shape=(4, 3), step=1)["loss"].backward()
    with pytest.raises(ValueError, match='"denoise"'):
        gated(shape=(4, 3), step=2)


def test_a_prediction_that_is_read_late_is_that_of_the_draw():
    ours, calls = objective(FullChain(DDIM(), steps=3), reads=Term(Reads()))
    x0 = torch.randn(4, 3)
    found = ours(x0, step=2)["reads"]
    assert len(calls) == 3 + 1
    draw = ours.draw(x0, step=2)
    torch.testing.assert_close(found, draw.prediction.x0.mean())


def test_a_time_sampler_learns_nothing_of_chains():
    net, times = Net(), LossSecondMoment()
    terms = {"small": Term(ImageLoss(lambda x: x.square().mean(1), FullChain(DDIM(), steps=2), expect=None))}
    ours = Objective(Denoiser(net, Cosine(), V), terms, times)
    before = {name: x.clone() for name, x in times.state_dict().items()}
    for _ in range(3):
        ours(shape=(4, 3))
    assert all(torch.equal(x, before[name]) for name, x in times.state_dict().items())
