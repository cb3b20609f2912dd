"""Masks that come with the batch: values and gradients by hand, in every space; what penalties see of a draw."""

import pytest
import torch
from torch import nn

import xhat
from oracles import SCHEDULES, TARGETS
from xhat import X0, Denoiser, Denoising, ImageLoss, Objective, Term, V, masked, masked_mean
from xhat.diffusion.weightings import between
from xhat.losses.norms import absolute, euclidean, huber, squared

ALL = between(-99, 99)


class Free(nn.Module):
    """An output for each pixel of each image, whatever it sees: gradients are those of the loss."""

    def __init__(self, *shape):
        super().__init__()
        self.out = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(3)))
        self.seen = None

    def forward(self, z, t, **cond):
        self.seen = cond
        return self.out[: len(z)]


def parts(space, *, shape=(3, 1, 4, 5), target=V, **kwargs):
    net = Free(*shape)
    denoiser = Denoiser(net, SCHEDULES["cosine"](), target)
    return net, Objective(denoiser, {"a": Term(Denoising(space, **kwargs))})


def half(*shape):
    """1 in the first rows, 0 below."""
    mask = torch.zeros(*shape)
    mask[..., : shape[-2] // 2, :] = 1
    return mask


@pytest.mark.parametrize("space", TARGETS, ids=lambda s: s.name)
@pytest.mark.trap(19)
@pytest.mark.trap(50)
def test_a_masked_loss_is_the_hand_computation_in_every_space(space, rng):
    net, objective = parts(space, where=masked("mask"))
    x0, mask = torch.rand(3, 1, 4, 5, generator=rng) * 2 - 1, half(3, 1, 4, 5)
    draw = objective.draw(x0, step=0, extra={"mask": mask})
    error = draw.prediction.in_space(space) - space.of(objective.denoiser.schedule, draw.t, x0, draw.noise)
    value = objective.terms["a"].loss(objective.denoiser, draw)
    torch.testing.assert_close(value, error[:, :, :2].square().sum((1, 2, 3)) / 20, rtol=1e-5, atol=1e-7)
    own = Denoising(space, where=masked_mean("mask"))(objective.denoiser, draw)
    torch.testing.assert_close(own, error[:, :, :2].square().mean((1, 2, 3)), rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(value.sum(), net.out)
    assert torch.equal(gradient[:, :, 2:], torch.zeros(3, 1, 2, 5))
    assert bool((gradient[:, :, :2] != 0).all())


@pytest.mark.parametrize("norm", [squared, absolute, huber(0.5), euclidean], ids=["squared", "absolute", "huber", "euclidean"])
@pytest.mark.parametrize("where", [masked, masked_mean])
def test_every_norm_weighs_its_pixels(norm, where, rng):
    """A mask of ones changes nothing; a soft mask weighs each pixel's own part."""
    _, objective = parts(X0)
    draw = objective.draw(torch.rand(3, 1, 4, 5, generator=rng), step=0, extra={"one": torch.ones(3, 1, 1, 1)})
    plain = Denoising(X0, norm=norm)(objective.denoiser, draw)
    torch.testing.assert_close(Denoising(X0, norm=norm, where=where("one"))(objective.denoiser, draw), plain)
    soft = torch.rand(3, 4, 5, generator=rng)
    draw = objective.draw(draw.x0, step=0, extra={"soft": soft})
    error = draw.prediction.x0 - draw.x0
    each = {squared: lambda e: e**2, absolute: lambda e: e.abs(), euclidean: lambda e: e**2}.get(norm)
    each = each or (lambda e: torch.where(e.abs() <= 0.5, e**2 / 2, 0.5 * (e.abs() - 0.25)))
    total = (soft.unsqueeze(1) * each(error)).sum((1, 2, 3)) / (soft.sum((1, 2)) if where is masked_mean else 20)
    wanted = (20 * total).sqrt() if norm is euclidean else total
    found = Denoising(X0, norm=norm, where=where("soft"))(objective.denoiser, draw)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.trap(19)
@pytest.mark.trap(50)
def test_an_empty_mask_and_an_infinite_pixel_outside_leave_the_rest_finite(rng):
    net, objective = parts(X0, target=X0, where=masked_mean("mask"))
    with torch.no_grad():
        net.out[0, 0, 3, 3] = float("inf")
    mask = half(3, 1, 4, 5)
    mask[1] = 0
    losses = objective(torch.rand(3, 1, 4, 5, generator=rng), step=0, extra={"mask": mask.bool()})
    losses["loss"].backward()
    assert bool(torch.isfinite(net.out.grad).all())
    assert torch.equal(net.out.grad[1], torch.zeros(1, 4, 5))


def test_the_masked_mean_does_not_know_the_area(rng):
    """The same error everywhere: the mean over the mask stays, the mean over all pixels falls with it."""
    net, objective = parts(X0, target=X0)
    x0 = torch.zeros(3, 1, 4, 5)
    with torch.no_grad():
        net.out.fill_(0.5)
    for rows in (1, 2, 4):
        mask = torch.zeros(3, 1, 4, 5)
        mask[:, :, :rows] = 1
        draw = objective.draw(x0, step=0, extra={"mask": mask})
        own, whole = (Denoising(X0, where=w("mask"))(objective.denoiser, draw) for w in (masked_mean, masked))
        torch.testing.assert_close(own, torch.full((3,), 0.25))
        torch.testing.assert_close(whole, torch.full((3,), 0.25 * rows / 4))


@pytest.mark.trap(50)
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (None, 'a mask "mask" is needed beside the batch, it has nothing'),
        ({"other": torch.ones(3)}, "it has other"),
        ({"mask": torch.ones(2, 1, 4, 5)}, r'extra\["mask"\] has 2 rows for 3 samples'),
        ({"mask": torch.ones(3, 1, 5, 4)}, r"of shape \(3, 1, 5, 4\) does not fit values of shape \(3, 1, 4, 5\)"),
        ({"mask": torch.ones(3, 2, 4, 5)}, "does not fit"),
        ({"mask": -torch.ones(3, 1, 4, 5)}, "has values below 0"),
        ({"mask": torch.full((3, 1, 4, 5), float("nan"))}, "has values below 0, or NaN"),
        ({"mask": 3}, "has no rows, it is a int"),
    ],
)
def test_masks_that_do_not_fit_are_refused(extra, said, rng):
    _, objective = parts(X0, where=masked("mask"))
    with pytest.raises(ValueError, match=said):
        objective(torch.rand(3, 1, 4, 5, generator=rng), step=0, extra=extra)


def test_a_norm_that_cannot_weigh_is_refused():
    with pytest.raises(ValueError, match="give it a second parameter, weight=None"):
        Denoising(X0, norm=lambda error: error.flatten(1).mean(1), where=masked("mask"))


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 9), (4, 1, 3, 4, 5)], ids=["vectors", "signals", "volumes"])
def test_masks_fit_data_of_any_rank(shape, rng):
    net, objective = parts(X0, shape=shape, target=X0, where=masked_mean("mask"))
    mask = torch.rand(shape[0], *shape[2:], generator=rng) if len(shape) > 2 else torch.rand(*shape, generator=rng)
    draw = objective.draw(torch.rand(*shape, generator=rng), step=0, extra={"mask": mask})
    full = (mask.unsqueeze(1) if len(shape) > 2 else mask).expand(shape)
    error = (net.out - draw.x0).square()
    wanted = (full * error).flatten(1).sum(1) / full.flatten(1).sum(1)
    torch.testing.assert_close(objective.per_image("a", draw), wanted * draw.importance)


def test_a_mask_follows_its_sample_over_micro_batches(rng):
    """Masks of the first and of the second half, in two calls of one step: the mean of both is the call on all."""
    net = Free(8, 1, 4, 4)
    x0, mask = torch.rand(8, 1, 4, 4, generator=rng), torch.rand(8, 1, 4, 4, generator=rng)

    class Mine(nn.Module):
        def forward(self, z, t, number):
            return net.out[number]

    objective = Objective(Denoiser(Mine(), SCHEDULES["cosine"](), V), {"a": Term(Denoising(V, where=masked_mean("m")))})
    number = torch.arange(8)
    whole = objective(x0, step=2, cond={"number": number}, extra={"m": mask}, shard=xhat.Shard(0, 8))["loss"]
    split = []
    for first in (0, 4):
        own = slice(first, first + 4)
        cond, extra = {"number": number[own]}, {"m": mask[own]}
        split.append(objective(x0[own], step=2, cond=cond, extra=extra, shard=xhat.Shard(first, 8))["loss"])
    torch.testing.assert_close(sum(split) / 2, whole)


def test_extra_goes_to_penalties_and_never_to_the_network(rng):
    net, seen = Free(3, 1, 4, 5), []

    def reward(images, draw):
        seen.append((draw.extra["prompt"], draw.cond, draw.x0))
        return images.flatten(1).mean(1) * draw.extra["factor"]

    denoiser = Denoiser(net, SCHEDULES["cosine"](), V)
    objective = Objective(denoiser, {"r": Term(ImageLoss(reward, weighting=ALL))})
    x0, cond = torch.rand(3, 1, 4, 5, generator=rng), {"label": torch.arange(3)}
    extra = {"prompt": ["a", "b", "c"], "factor": torch.tensor([0.0, 1.0, 2.0])}
    loss = objective(x0, step=0, cond=cond, extra=extra)["r"]
    assert set(net.seen) == {"label"}
    assert seen[0][0] == ["a", "b", "c"]
    draw = objective.draw(x0, step=0, cond=cond)
    values = draw.prediction.x0.flatten(1).mean(1) * extra["factor"]
    torch.testing.assert_close(loss, (values * draw.importance).mean().detach())


def test_a_second_parameter_with_a_default_is_the_penaltys_own(rng):
    def dark(images, limit=0.25):
        return (images - limit).flatten(1).mean(1)

    images = torch.rand(2, 1, 3, 3, generator=rng)
    loss = ImageLoss(dark, weighting=ALL)
    torch.testing.assert_close(loss.of_images()(images), dark(images))
    assert ImageLoss(lambda images, draw: images.flatten(1).mean(1)).of_images() is None
    assert ImageLoss(xhat.penalties.masked_mean(torch.square, "mask")).of_images() is None


def test_decoding_some_images_hands_over_their_rows_alone(rng):
    """With `decode`, only images whose weight is not 0 are seen: the draw's rows are theirs, and so is its noise."""
    handed = []

    def penalty(images, draw):
        handed.append(draw)
        return images.flatten(1).mean(1)

    net = Free(16, 1, 4, 4)
    loss = ImageLoss(penalty, weighting=between(0, 99), decode=lambda x: x)
    objective = Objective(Denoiser(net, SCHEDULES["cosine"](), V), {"p": Term(loss)})
    x0, names = torch.rand(16, 1, 4, 4, generator=rng), [f"image {k}" for k in range(16)]
    draw = objective.draw(x0, step=0, cond={"label": torch.arange(16)}, extra={"name": names})
    loss(objective.denoiser, draw)
    rows = loss.scale(objective.denoiser, draw).nonzero().squeeze(1)
    (own,) = handed
    assert 0 < len(rows) < 16
    assert own.extra["name"] == [names[k] for k in rows]
    assert torch.equal(own.cond["label"], rows)
    assert torch.equal(own.x0, x0[rows])
    assert torch.equal(own.normal("mine"), draw.normal("mine")[rows])
    again = own.rows(torch.tensor([1]))
    assert torch.equal(again.normal("mine"), draw.normal("mine")[rows[1:2]])
    torch.testing.assert_close(own.prediction.x0, draw.prediction.x0[rows])


def test_penalties_with_a_mask_of_the_batch(rng):
    """mask and masked_mean of `penalties` take a name in place of a tensor."""
    _, objective = parts(X0)
    mask = torch.rand(3, 1, 4, 5, generator=rng)
    draw = objective.draw(torch.rand(3, 1, 4, 5, generator=rng), step=0, extra={"m": mask})
    image = draw.prediction.x0
    for make, area in ((xhat.penalties.mask, 20), (xhat.penalties.masked_mean, mask.sum((1, 2, 3)))):
        found = ImageLoss(make(torch.square, "m"), weighting=ALL)(objective.denoiser, draw)
        torch.testing.assert_close(found, (mask * image**2).sum((1, 2, 3)) / area)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    _, objective = parts(X0)
    with pytest.raises(ValueError, match="not finite"):
        objective(torch.full((3, 1, 4, 5), bad))
