"""Losses on the created image: what the penalty sees, and how its gradient reaches the network."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, SHAPE, GaussianData, MixtureData, ScaledX0
from xhat import X0, Denoiser, Denoising, ImageLoss, Objective, OneStep, Term, V, weightings
from xhat.diffusion.weightings import between
from xhat.losses.penalties import out_of_range, per_image, total_variation

EVERYWHERE = between(-math.inf, math.inf)


def close(a, b, rtol=1e-6, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def drawn(rng):
    """A denoiser and a draw of six images."""
    schedule = SCHEDULES["cosine"]()
    denoiser = Denoiser(ScaledX0(schedule, V), schedule, V)
    images = MixtureData().sample(6, rng)
    return denoiser, Objective(denoiser, {"d": Term(Denoising())}).draw(images, step=2)


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0, 3.0], [0.0, -1.0, 3.0]]).reshape(1, 1, 2, 3)
    close(total_variation(image), torch.tensor([(0 + 2 + 0) / 3 + (1 + 2 + 1 + 4) / 4]))
    close(total_variation(torch.full((2, 3, 4, 4), 0.7)), torch.zeros(2))


def test_total_variation_has_torchmetrics_parts(rng):
    """torchmetrics sums |differences| in both directions; ours are the means of each direction."""
    from torchmetrics.functional.image import total_variation as peer

    x = torch.randn(5, 3, 8, 8, generator=rng)
    close(total_variation(x) * 3 * 7 * 8, peer(x, reduction="none"), rtol=1e-5)


def test_out_of_range_by_hand():
    image = torch.tensor([1.5, -3.0, 0.2, -1.0]).reshape(1, 1, 2, 2)
    close(out_of_range(image), torch.tensor([(0.5 + 2.0) / 4]))


def test_out_of_range_pulls_back_from_far_outside():
    image = torch.full((1, *SHAPE), 80.0, requires_grad=True)
    (grad,) = torch.autograd.grad(out_of_range(image).sum(), image)
    close(grad, torch.full((1, *SHAPE), 0.25))


def test_per_image_averages_each_image_alone():
    images = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
    close(per_image(lambda x: x**2 + 1)(images), torch.tensor([1.0, 2.0]))


@pytest.mark.trap(28)
def test_the_value_is_the_penalty_of_x0_hat_times_the_weight(drawn):
    denoiser, draw = drawn
    snr = denoiser.schedule.logsnr(draw.t).exp().double()
    expected = total_variation(draw.prediction.x0)
    centre = 2 * (3 - 2 * math.log(2 / 28))  # of images of 2 x 2
    close(ImageLoss(total_variation, weighting=EVERYWHERE)(denoiser, draw), expected)
    close(ImageLoss(total_variation)(denoiser, draw), snr**2 / (snr**2 + math.exp(centre)) * expected)
    close(ImageLoss(total_variation, OneStep())(denoiser, draw), snr**2 / (snr**2 + math.exp(centre)) * expected)
    close(ImageLoss(total_variation, weighting=weightings.truncated_snr)(denoiser, draw), snr.clamp(min=1) * expected)
    assert (expected - total_variation(draw.z)).abs().max() > 0.05


def test_decode_comes_before_the_penalty(drawn):
    denoiser, draw = drawn
    loss = ImageLoss(total_variation, weighting=EVERYWHERE, decode=nn.Upsample(scale_factor=2, mode="nearest"))
    close(loss(denoiser, draw), total_variation(draw.prediction.x0.repeat_interleave(2, -1).repeat_interleave(2, -2)))


@pytest.mark.trap(14)
def test_the_gradient_is_the_chain_rule_through_x0_hat(drawn):
    """x0_hat = scale z + shift, so d penalty/d scale = <grad penalty(x0_hat), z>."""
    denoiser, draw = drawn
    image = draw.prediction.x0.detach().requires_grad_()
    (slope,) = torch.autograd.grad(out_of_range(5 * image).sum(), image)
    (grad,) = torch.autograd.grad(
        ImageLoss(lambda x: out_of_range(5 * x), weighting=EVERYWHERE)(denoiser, draw).sum(), denoiser.net.scale
    )
    close(grad, (slope * draw.z).sum(), rtol=1e-5)


def test_no_second_network_call(drawn):
    denoiser, draw = drawn
    denoiser.net.register_forward_hook(lambda *_: pytest.fail("the network was called again"))
    ImageLoss(total_variation)(denoiser, draw)


@pytest.mark.parametrize("target", [X0, V, xhat.NOISE, xhat.targets.edm(0.5)], ids=lambda x: x.name)
def test_one_step_is_the_same_image_whatever_the_network_predicts(target, rng):
    schedule, x0 = SCHEDULES["cosine"](), GaussianData().sample(4, rng)
    objective = Objective(Denoiser(ScaledX0(schedule, target), schedule, target), {"i": Term(ImageLoss(total_variation))})
    reference = Objective(Denoiser(ScaledX0(schedule, V), schedule, V), {"i": Term(ImageLoss(total_variation))})
    close(objective(x0)["i"], reference(x0)["i"], rtol=1e-5)


def test_whether_it_depends_on_t_is_up_to_the_estimate():
    class Elsewhere:
        at_drawn_time = False

        def __call__(self, denoiser, draw):
            return draw.x0

    assert ImageLoss(total_variation).at_drawn_time
    assert not ImageLoss(total_variation, Elsewhere()).at_drawn_time


def test_a_penalty_that_reduces_over_the_batch_is_refused(drawn):
    with pytest.raises(ValueError, match="one value per image"):
        ImageLoss(lambda x: x.abs().mean())(*drawn)


def test_an_image_loss_says_nothing_about_the_noise_weighting(drawn):
    assert ImageLoss(total_variation).noise_weight(drawn[0], torch.zeros(1)) is None


class Decoder(nn.Module):
    """A decoder that notes what it is given."""

    def __init__(self):
        super().__init__()
        self.scale, self.rows = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), []
        self.drop = nn.Dropout(0.5)

    def forward(self, latents):
        self.rows.append(len(latents))
        return self.drop(self.scale * latents).repeat_interleave(2, -1)


@pytest.mark.trap(36)
def test_a_decoder_stays_the_callers(drawn):
    """Not in the state, not among the parameters, never put in training mode."""
    denoiser, _ = drawn
    decoder = Decoder().eval()
    objective = Objective(denoiser, {"i": Term(ImageLoss(total_variation, decode=decoder))}).train()
    assert not decoder.training
    assert not any("decode" in name for name in objective.state_dict())
    assert id(decoder.scale) not in map(id, objective.parameters())


@pytest.mark.trap(36)
def test_only_images_that_count_are_decoded(drawn):
    denoiser, draw = drawn
    logsnr = denoiser.schedule.logsnr(draw.t)
    middle = float(logsnr.sort().values[2:4].mean())
    decoder, gate = Decoder().eval(), between(middle, math.inf)
    loss = ImageLoss(total_variation, weighting=gate, decode=decoder)
    value = loss(denoiser, draw)
    assert decoder.rows == [1, 3]  # one clean image for its range, then the three that count
    expected = total_variation(draw.prediction.x0.repeat_interleave(2, -1)) * gate(logsnr, denoiser.schedule)
    close(value, expected)
    (grad,) = torch.autograd.grad(value.sum(), denoiser.net.scale, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), denoiser.net.scale, retain_graph=True)
    close(grad, wanted)
    none = ImageLoss(total_variation, weighting=between(1e3, math.inf), decode=decoder)(denoiser, draw)
    (grad,) = torch.autograd.grad(none.sum(), denoiser.net.scale)
    assert decoder.rows == [1, 3, 1]
    assert (none.abs().sum() + grad.abs()).item() == 0


@pytest.mark.parametrize(
    ("expect", "scale", "refused"),
    [((-1.0, 1.0), 300.0, True), (None, 300.0, False), ((250.0, 350.0), 300.0, False), ((250.0, 350.0), 1e5, True)],
)
def test_the_range_of_fields_and_latents_can_be_said(drawn, expect, scale, refused):
    denoiser, draw = drawn
    loss, draw = ImageLoss(total_variation, expect=expect), replace(draw, x0=torch.full_like(draw.x0, scale))
    if not refused:
        assert torch.isfinite(loss(denoiser, draw)).all()
        return
    with pytest.raises(ValueError, match=r"expects \[.*expect="):
        loss(denoiser, draw)


def test_total_variation_along_an_axis_of_one_pixel_is_0():
    x = torch.tensor([0.0, 2.0, 1.0])
    close(total_variation(x.reshape(1, 1, 1, 3)), torch.tensor([1.5]))
    close(total_variation(x.reshape(1, 1, 3, 1)), torch.tensor([1.5]))
    pixel = torch.ones(2, 3, 1, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(total_variation(pixel).sum(), pixel)
    assert (total_variation(pixel) == 0).all()
    assert (grad == 0).all()


def test_images_in_0_to_255_are_noted_once(drawn):
    """`Denoising` trains on them, and badly: one line, as penalties refuse them."""
    denoiser, draw = drawn
    objective = Objective(denoiser, {"d": Term(Denoising())})
    bytes_ = 255 * (draw.x0 > 0).double()
    with pytest.warns(UserWarning, match=r"\[0, 255\].*127\.5"):
        objective(bytes_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(bytes_)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_decoded_and_measured(drawn, dtype):
    denoiser, draw = drawn
    low = replace(draw, x0=draw.x0.to(dtype), prediction=denoiser(draw.z.to(dtype), draw.t))
    assert torch.isfinite(ImageLoss(total_variation, decode=lambda z: z)(denoiser, low)).all()
    assert torch.isfinite(ImageLoss(total_variation, decode=lambda z: z.double())(denoiser, low)).all()
    assert total_variation(torch.ones(1, 3, 256, 256, dtype=dtype)).item() == 0


def test_a_trained_penalty_has_a_gradient_also_where_nothing_counts(drawn):
    """DDP waits for it."""
    denoiser, draw = drawn

    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, images):
            return self.w * images.flatten(1).mean(1)

    loss = ImageLoss(Trained(), weighting=between(1e3, math.inf), decode=lambda z: z)
    loss(denoiser, draw).sum().backward()
    assert loss.penalty.w.grad.item() == 0


def test_the_penalty_of_images_alone_sees_them_decoded():
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = xhat.ImageLoss(lambda x: x.flatten(1).mean(1), decode=lambda z: 2 * z + 1)
    torch.testing.assert_close(loss.of_images()(images), 2 * images.mean((1, 2, 3)) + 1)
    assert xhat.ImageLoss(xhat.penalties.Paired(lambda a, b: (a - b).flatten(1).mean(1))).of_images() is None
