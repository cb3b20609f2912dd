"""Classifier-free guidance against its formula, in every view of the prediction."""

import pytest
import torch

from xhat import DDIM, NOISE, X0, Cosine, Denoiser, Draw, FullChain, Guided, Last, Rollout, V, generate, sample, uniform_times
from xhat.data.batch import chosen_rows, require_rows
from xhat.data.shape import DataShape
from xhat.diffusion.targets import edm
from xhat.diffusion.variances import LEARNED
from xhat.networks.unet import UNet
from xhat.sampling.guidance import BothBranches, ConditionalBranch, Guidance
from xhat.sampling.samplers import Heun


def model(target, **kwargs):
    torch.manual_seed(0)
    network = UNet(classes=3, widths=(8, 8), blocks=(1, 1), embedding=16, outputs=2 if kwargs else 1).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Denoiser(network, Cosine(), target, **kwargs)


@pytest.mark.parametrize("target", [V, X0, NOISE, edm(0.5)], ids=lambda t: t.name)
def test_guidance_acts_alike_in_every_view(target):
    denoiser, z, t = model(target), torch.randn(3, 1, 8, 8).double(), torch.rand(3).double()
    label = torch.tensor([0, 1, 2])
    guided = Guided(denoiser, 2.5, 3)(z, t, {"label": label})
    conditional, unconditional = denoiser(z, t, {"label": label}), denoiser(z, t)
    for view in ("x0", "noise", "raw"):
        a, b = getattr(conditional, view), getattr(unconditional, view)
        torch.testing.assert_close(getattr(guided, view), b + 2.5 * (a - b))


def test_scale_one_is_the_denoiser_itself_in_one_call():
    denoiser, calls = model(V), []
    denoiser.net.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    z, t, cond = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), {"label": torch.tensor([0, 1])}
    assert torch.equal(Guided(denoiser, 1.0, 3)(z, t, cond).raw, denoiser(z, t, cond).raw)
    assert calls == [2, 2]


def test_the_variance_is_the_conditional_one():
    denoiser = model(V, variance=LEARNED)
    z, t, cond = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), {"label": torch.tensor([0, 1])}
    guided, plain = (m(z, t, cond).variance_logits for m in (Guided(denoiser, 3.0, 3), denoiser))
    torch.testing.assert_close(guided, plain)


class Sum(torch.nn.Module):
    """A network of vectors: z · text + mask."""

    def forward(self, z, t, text, mask):
        return z * text.mean(1, keepdim=True) + mask


def test_any_rank_and_any_condition_is_guided_and_what_has_no_blank_stays():
    """Vectors (B, D) with a text (B, L) that is blanked and a mask (B, 1) that is not."""
    denoiser = Denoiser(Sum(), Cosine(), V)
    z, t, blank = torch.randn(3, 5).double(), torch.rand(3).double(), torch.zeros(4).double()
    cond = {"text": torch.randn(3, 4).double(), "mask": torch.randn(3, 1).double()}
    guided = Guided(denoiser, 2.0, {"text": blank})(z, t, cond).raw
    a, b = denoiser(z, t, cond).raw, denoiser(z, t, {**cond, "text": blank.expand(3, 4)}).raw
    torch.testing.assert_close(guided, b + 2 * (a - b))


@pytest.mark.trap(35)
@pytest.mark.parametrize("cond", [None, {}, {"text": torch.zeros(2, 1)}], ids=["none", "empty", "other"])
def test_guidance_by_a_condition_that_cannot_be_blanked_is_refused(cond):
    """It would be no guidance, bit for bit."""
    guided, z, t = Guided(model(V), 2.0, 3), torch.randn(2, 1, 8, 8).double(), torch.rand(2).double()
    with pytest.raises(ValueError, match=r"can blank label; given is (nothing|text)"):
        guided(z, t, cond)


def test_an_image_depends_on_seed_and_number_alone():
    """However many are drawn, and in whatever batches."""
    denoiser = model(V).float()
    times, shape = uniform_times(denoiser.schedule, 3), DataShape(1, 8, 3)
    few, labels = generate(denoiser, DDIM(), shape, 5, times=times, guidance=1.5, seed=4)
    many, _ = generate(denoiser, DDIM(), shape, 40, times=times, guidance=1.5, seed=4, batch=7)
    other, _ = generate(denoiser, DDIM(), shape, 5, times=times, guidance=1.5, seed=5)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert (few.int() - many[:5].int()).abs().max() <= 1  # one unit of rounding: sums in another batch size
    assert not torch.equal(few, other)


def test_what_has_no_row_for_each_image_goes_to_both_halves_as_it_is():
    class Net(torch.nn.Module):
        def forward(self, z, t, label, flag, shared, scale):
            assert flag is True
            assert shared.shape == (1, 4)
            assert scale.ndim == 0
            return z * label.unsqueeze(1)

    z, t = torch.randn(3, 5).double(), torch.rand(3).double()
    cond = {"label": torch.arange(3), "flag": True, "shared": torch.ones(1, 4), "scale": torch.tensor(2.0), "none": None}
    guided = Guided(Denoiser(Net(), Cosine(), V), 2.0, 7)(z, t, cond).raw
    torch.testing.assert_close(guided, 7 * z + 2 * (z * torch.arange(3).unsqueeze(1) - 7 * z))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_condition_bound_once_is_the_condition_of_each_call(scale):
    """Of the denoiser and of a guided one, in every method; the view is no module, so that nothing is registered twice."""
    denoiser = model(V, variance=LEARNED)
    denoiser = denoiser if scale == 1 else Guided(denoiser, scale, 3)
    z, t, cond = torch.randn(2, 1, 8, 8).double(), torch.tensor([0.9, 0.4]).double(), {"label": torch.tensor([0, 1])}
    s, bound, by_hand = t / 2, denoiser.given(cond), denoiser(z, t, cond)
    other = denoiser.given({"label": cond["label"] + 1})
    assert torch.equal(bound(z, t).raw, by_hand.raw)
    assert not torch.equal(other(z, t).raw, by_hand.raw)
    for found in (bound.reverse(z, t, s), bound.step_back(bound(z, t), s)):
        expected = denoiser.step_back(by_hand, s)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.log_variance, expected.log_variance)
    assert bound.schedule is denoiser.schedule
    assert not isinstance(bound, torch.nn.Module)


def test_a_chain_carries_its_condition_into_each_step():
    """Three steps of Heun by hand, the condition written out at each call."""
    denoiser = model(V)
    z, cond = torch.randn(2, 1, 8, 8).double(), {"label": torch.tensor([0, 1])}
    times, seen = uniform_times(denoiser.schedule, 3), []
    denoiser.net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    told = sample(denoiser, Heun(), z, times, cond=cond)
    assert len(seen) == 5
    assert all(torch.equal(kwargs["label"], cond["label"]) for kwargs in seen)
    assert not torch.equal(told, sample(denoiser, Heun(), z, times))


class Nested(torch.nn.Module):
    """A network of a mapping, a tuple of tensors of any rank, and a list of words, each with rows."""

    def forward(self, z, t, text, residuals, words):
        down = residuals[0].sum((1, 2, 3)) + residuals[1]
        length = torch.tensor([float(len(word)) for word in words], dtype=z.dtype)
        return z * (text["pooled"].mean(1) + down + length).unsqueeze(1) + text["flag"]


def test_conditions_made_of_parts_are_guided():
    denoiser = Denoiser(Nested(), Cosine(), V)
    z, t = torch.randn(3, 5).double(), torch.rand(3).double()
    cond = {
        "text": {"pooled": torch.randn(3, 4).double(), "flag": 0.5},
        "residuals": (torch.randn(3, 2, 2, 2).double(), torch.randn(3).double()),
        "words": ["a", "dog", "runs"],
    }
    null = {
        "text": {"pooled": torch.zeros(4).double()},
        "residuals": (torch.zeros(2, 2, 2).double(), torch.tensor(1.0).double()),
        "words": "",
    }
    without = {
        "text": {"pooled": torch.zeros(3, 4).double(), "flag": 0.5},
        "residuals": (torch.zeros(3, 2, 2, 2).double(), torch.ones(3).double()),
        "words": ["", "", ""],
    }
    a, b = denoiser(z, t, cond).raw, denoiser(z, t, without).raw
    torch.testing.assert_close(Guided(denoiser, 2.0, null)(z, t, cond).raw, b + 2 * (a - b))
    some = chosen_rows(cond, torch.tensor([2, 0]), 3)
    torch.testing.assert_close(denoiser(z[[2, 0]], t[[2, 0]], some).raw, a[[2, 0]])
    with pytest.raises(ValueError, match=r'cond\["residuals"\]\["1"\] has 2 rows for 3 samples'):
        require_rows({"residuals": (torch.zeros(3), torch.zeros(2))}, 3, "cond")


def test_a_row_of_another_shape_is_refused():
    denoiser, z, t = Denoiser(Sum(), Cosine(), V), torch.randn(3, 5), torch.rand(3)
    cond = {"text": torch.randn(3, 4), "mask": torch.randn(3, 1)}
    with pytest.raises(ValueError, match=r'null\["text"\] is \(7,\), a row of that condition is \(4,\)'):
        Guided(denoiser, 2.0, {"text": torch.zeros(7)})(z, t, cond)
    with pytest.raises(ValueError, match="guidance of scale 2 compares with and without a condition: say what stands for none"):
        Guided(denoiser, 2.0)


def draw_of(denoiser, label):
    """A draw of three images, as an objective has it."""
    x0, t = torch.randn(3, 1, 8, 8).double(), torch.tensor([0.9, 0.5, 0.2]).double()
    cond = {"label": label}
    return Draw(x0, t, x0, x0, denoiser(x0, t, cond), torch.ones(3), cond, step=0, seed=0)


@pytest.mark.parametrize("estimate", [FullChain, Rollout])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_guided_chain_is_the_chain_of_the_guided_model(estimate, checkpoint):
    """Its image and its gradient, through both branches."""
    denoiser = model(V)
    denoiser.null = {"label": 3}
    draw = draw_of(denoiser, torch.tensor([0, 1, 2]))
    parameters = list(denoiser.parameters())
    steps = {"steps": 3, "differentiate": Last(2)}
    ours = estimate(DDIM(), **steps, checkpoint=checkpoint, guidance=4.0)(denoiser, draw)
    by_hand = estimate(DDIM(), **steps, checkpoint=False)(Guided(denoiser, 4.0, 3), draw)
    torch.testing.assert_close(ours, by_hand)
    found, expected = (torch.autograd.grad(x.square().sum(), parameters, retain_graph=True) for x in (ours, by_hand))
    torch.testing.assert_close(found, expected)
    plain = estimate(DDIM(), **steps)(denoiser, draw)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_the_gradient_through_the_conditional_branch_alone():
    """The same images; the gradient is that with the other branch held fixed: scale · d conditional."""
    denoiser = model(V)
    z, t, cond = torch.randn(3, 1, 8, 8).double(), torch.rand(3).double(), {"label": torch.tensor([0, 1, 2])}
    calls = []
    denoiser.net.register_forward_hook(lambda module, inputs, output: calls.append((len(inputs[0]), torch.is_grad_enabled())))
    both, one = (Guided(denoiser, 2.5, 3, through)(z, t, cond).raw for through in (BothBranches(), ConditionalBranch()))
    torch.testing.assert_close(one, both)
    assert calls == [(6, True), (3, False), (3, True)]
    parameters, side = list(denoiser.parameters()), torch.randn(3, 1, 8, 8).double()
    found = torch.autograd.grad((one * side).sum(), parameters)
    a, b = denoiser(z, t, cond).raw, denoiser(z, t).raw
    of_one = torch.autograd.grad((2.5 * a * side).sum(), parameters)
    of_other = torch.autograd.grad((-1.5 * b * side).sum(), parameters)
    torch.testing.assert_close(found, of_one)
    whole = torch.autograd.grad((both * side).sum(), parameters)
    torch.testing.assert_close(whole, tuple(x + y for x, y in zip(of_one, of_other, strict=True)))
    chain = FullChain(DDIM(), steps=2, differentiate=Last(2), guidance=Guidance(2.5, {"label": 3}, ConditionalBranch()))
    by_hand = FullChain(DDIM(), steps=2, differentiate=Last(2))
    draw = draw_of(denoiser, cond["label"])
    guided = Guided(denoiser, 2.5, 3, ConditionalBranch())
    ours, theirs = (torch.autograd.grad(x.square().sum(), parameters) for x in (chain(denoiser, draw), by_hand(guided, draw)))
    torch.testing.assert_close(ours, theirs)


def test_guidance_of_a_chain_that_is_no_scale():
    with pytest.raises(ValueError, match="guidance has a finite scale such as 5, and 1 for none, got nan"):
        FullChain(guidance=float("nan"))
