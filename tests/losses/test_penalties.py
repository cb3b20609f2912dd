"""Penalties: hand-computed values, closed forms, peers and finite differences."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from xhat.data.images import to_float
from xhat.data.load import load
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import (
    Paired,
    five_point,
    frozen,
    high_frequencies,
    laplacian,
    lpips,
    mask,
    masked_mean,
    ssim,
    unreadable_digit,
)
from xhat.networks.digits import MNISTFeatures

SIZE = 5


def close(a, b, rtol=1e-6, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def squared(images):
    return images**2


def images_of(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=dtype)


def slope_matches(penalty, images, rng, rtol=1e-5, step=1e-6):
    """The gradient along a random direction is the central difference, and is not zero."""
    images = images.requires_grad_()
    (grad,) = torch.autograd.grad(penalty(images).sum(), images)
    direction = images_of(rng, *images.shape)
    with torch.no_grad():
        slope = (penalty(images + step * direction) - penalty(images - step * direction)).sum() / (2 * step)
    close((grad * direction).sum(), slope, rtol=rtol, atol=1e-8)
    assert slope.abs() > 1e-4
    return grad


def plane_wave(rows, columns, size=8, amplitude=3.0):
    """A cosine of so many cycles down and across a square image."""
    n = torch.arange(size, dtype=torch.float64) / size
    return amplitude * (2 * math.pi * (rows * n[:, None] + columns * n)).cos().reshape(1, 1, size, size)


SMOOTH = {
    "laplacian": laplacian,
    "high_frequencies": high_frequencies(0.3),
    "mask": mask(squared, torch.arange(SIZE * SIZE).reshape(SIZE, SIZE)),
    "masked_mean": masked_mean(squared, torch.arange(SIZE * SIZE).reshape(SIZE, SIZE)),
    "ssim": lambda x: ssim(3)(x, plane_wave(1, 2, SIZE).expand_as(x)),
}


@pytest.mark.parametrize("penalty", SMOOTH.values(), ids=SMOOTH)
def test_gradients_are_finite_differences(penalty, rng):
    assert torch.autograd.gradcheck(penalty, images_of(rng, 2, 2, SIZE, SIZE).requires_grad_())


@pytest.mark.trap(8)
@pytest.mark.parametrize("penalty", SMOOTH.values(), ids=SMOOTH)
def test_each_image_counts_alone_though_the_batch_is_as_large_as_the_width(penalty, rng):
    images = images_of(rng, SIZE, 2, SIZE, SIZE)
    close(penalty(images), torch.cat([penalty(one[None]) for one in images]))
    assert penalty(images).unique().numel() == SIZE


# --- smoothness and frequencies -----------------------------------------------------------------------------------------


def test_laplacian_by_hand():
    image = torch.tensor([[7.0, 1.0, 7.0, 0.0], [0.0, 2.0, 3.0, 1.0], [7.0, -1.0, 7.0, 0.0]]).reshape(1, 1, 3, 4)
    close(five_point(image), torch.tensor([1 + 0 + 3 - 1 - 8.0, 7 + 2 + 1 + 7 - 12.0]).reshape(1, 1, 1, 2))
    close(laplacian(image), torch.tensor([(25 + 25) / 2.0]))


def test_laplacian_spares_slopes_and_is_exact_on_quadratics():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
    ramp = 0.3 * rows - 0.2 * columns + 1
    bowl = rows**2 - 3 * rows * columns + 0.5 * columns**2
    close(laplacian(torch.stack([ramp, bowl])[:, None]), torch.tensor([0.0, (2 + 1.0) ** 2]), atol=1e-6)


def test_laplacian_needs_an_interior():
    with pytest.raises(ValueError, match="at least 3x3 pixels, got 2x9"):
        laplacian(torch.zeros(1, 1, 2, 9))


@pytest.mark.parametrize("cutoff", [0.0, -1.0])
@pytest.mark.parametrize("shape", [(3, 2, 7, 4), (2, 1, 8, 8), (1, 3, 5, 9)])
def test_all_frequencies_are_the_mean_square(shape, cutoff, rng):
    images = images_of(rng, *shape)
    close(high_frequencies(cutoff)(images), images.square().flatten(1).mean(1), rtol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(2, 0), (0, 2), (1, 1), (2, 3), (-1, 3)])
def test_a_plane_wave_has_one_frequency(rows, columns):
    frequency, wave = math.hypot(rows, columns) / 8, plane_wave(rows, columns)
    close(high_frequencies(frequency - 1e-9)(wave), torch.tensor([3.0**2 / 2], dtype=torch.float64))
    close(high_frequencies(frequency + 1e-9)(wave), torch.zeros(1, dtype=torch.float64))


def test_the_cutoff_itself_counts_and_corners_are_reached():
    close(high_frequencies(0.25)(plane_wave(2, 0)), torch.tensor([4.5], dtype=torch.float64))
    close(high_frequencies(math.sqrt(0.5))(plane_wave(4, 4)), torch.tensor([9.0], dtype=torch.float64))


def test_the_high_passed_image_is_what_an_explicit_transform_leaves(rng):
    """Against the sum over frequencies written out, on an image that is not square."""
    image, cutoff = images_of(rng, 4, 6), 0.3
    kept = torch.zeros(4, 6, dtype=torch.complex128)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    for k in range(4):
        for m in range(6):
            fy, fx = (k if k < 2 else k - 4) / 4, (m if m < 3 else m - 6) / 6
            if math.hypot(fy, fx) >= cutoff:
                wave = torch.exp(2j * math.pi * (fy * y + fx * x).double())
                kept += (image * wave.conj()).sum() / 24 * wave
    close(high_frequencies(cutoff)(image[None, None]), kept.real.square().mean()[None])


@pytest.mark.parametrize("cutoff", [0.71, math.inf, math.nan])
def test_a_cutoff_that_nothing_reaches_is_refused(cutoff):
    with pytest.raises(ValueError, match="no frequency"):
        high_frequencies(cutoff)


# --- masks --------------------------------------------------------------------------------------------------------------


def test_masks_by_hand():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    where = torch.tensor([[True, False], [False, True]])
    close(mask(squared, where)(image), torch.tensor([(1 + 16) / 4]))
    close(masked_mean(squared, where)(image), torch.tensor([(1 + 16) / 2]))
    soft = torch.tensor([[0.5, 0.0], [0.25, 0.0]])
    close(mask(squared, soft)(image), torch.tensor([(0.5 + 9 / 4) / 4]))
    close(masked_mean(squared, soft)(image), torch.tensor([(0.5 + 9 / 4) / 0.75]))


@pytest.mark.trap(19)
@pytest.mark.parametrize("area", [1, 3, 17, 25])
def test_the_masked_mean_does_not_depend_on_the_area(area):
    """The same error everywhere: the mean stays, the plain mask counts the share of the area."""
    where = (torch.arange(25) < area).reshape(5, 5)
    images = torch.full((2, 3, 5, 5), 0.5)
    close(masked_mean(squared, where)(images), torch.full((2,), 0.25))
    close(mask(squared, where)(images), torch.full((2,), 0.25 * area / 25))


@pytest.mark.trap(19)
def test_an_empty_mask_is_zero_with_a_finite_gradient(rng):
    where = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    images = images_of(rng, 2, 2, 4, 4).requires_grad_()
    value = masked_mean(squared, where)(images)
    close(value, torch.stack([torch.zeros((), dtype=torch.float64), images[1].square().mean()]))
    (grad,) = torch.autograd.grad(value.sum(), images)
    close(grad, torch.stack([torch.zeros_like(images[0]), 2 * images[1].detach() / 32]))


@pytest.mark.trap(19)
@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3), (1, 1, 4, 3), (2, 1, 4, 3), (1, 5, 4, 3), (2, 5, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_every_shape_of_mask_is_the_loop_over_pixels(shape, dtype, rng):
    where = (torch.rand(shape, generator=rng) > 0.4).to(dtype)
    images = images_of(rng, 2, 5, 4, 3)
    full = where.double().expand(2, 5, 4, 3)
    for b in range(2):
        pixels = [
            (full[b, c, i, j], images[b, c, i, j] ** 2)
            for c, i, j in [(c, i, j) for c in range(5) for i in range(4) for j in range(3)]
        ]
        total, area = sum(w * v for w, v in pixels), sum(w for w, _ in pixels)
        close(mask(squared, where)(images)[b], total / 60)
        close(masked_mean(squared, where)(images)[b], total / area)


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 4, 3), (3, 4), (1, 1), (1, 3), (3, 5, 4, 3), (2, 2, 4, 3)])
@pytest.mark.parametrize("make", [mask, masked_mean])
def test_masks_that_do_not_fit_are_refused(make, shape):
    """(5, 4, 3) would broadcast as one mask per channel, (1, 3) over rows."""
    with pytest.raises(ValueError, match="does not fit values of shape"):
        make(squared, torch.ones(shape))(torch.zeros(2, 5, 4, 3))


def test_a_mask_fits_the_map_not_the_image():
    image = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 4.0]]).reshape(1, 1, 2, 3)
    where = torch.tensor([[1, 0], [0, 1]])
    close(masked_mean(lambda x: x.diff(dim=-1), where)(image), torch.tensor([(1 + 2) / 2.0]))
    with pytest.raises(ValueError, match=r"\(2, 3\) does not fit values of shape \(1, 1, 2, 2\)"):
        masked_mean(lambda x: x.diff(dim=-1), torch.ones(2, 3))(image)


@pytest.mark.parametrize("where", [torch.tensor([[1.0, -0.1]]), torch.tensor([[1.0, math.nan]]), torch.ones(3)])
@pytest.mark.parametrize("make", [mask, masked_mean])
def test_masks_that_are_none_are_refused(make, where):
    with pytest.raises(ValueError, match="values of at least 0"):
        make(squared, where)


# --- networks -----------------------------------------------------------------------------------------------------------


class Scorer(nn.Module):
    """Its value depends on batch statistics and chance in training mode."""

    def __init__(self, outputs=1):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, outputs), nn.Tanh(), nn.Dropout(0.5))

    def forward(self, images):
        return self.body(images)


def test_a_frozen_network_is_the_function_it_computes(rng):
    network, images = Scorer(), images_of(rng, 3, 1, 4, 4, dtype=torch.float32)
    weight, bias = network.body[2].weight.detach().clone(), network.body[2].bias.detach().clone()
    expected = torch.tanh(images.flatten(1) / math.sqrt(1 + 1e-5) @ weight[0] + bias)
    close(frozen(network)(images), expected, rtol=1e-5)
    close(frozen(network, lambda out: 2 * out[:, 0])(images), 2 * expected, rtol=1e-5)
    close(frozen(nn.Sequential(network, nn.Flatten(0)))(images), expected, rtol=1e-5)


def test_gradients_reach_the_images_and_not_the_network(rng):
    network = Scorer().double()
    penalty = frozen(network)
    slope_matches(penalty, images_of(rng, 3, 1, 4, 4), rng)
    images = images_of(rng, 3, 1, 4, 4).requires_grad_()
    penalty(images).sum().backward()
    assert images.grad.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_a_frozen_network_belongs_to_no_one(rng):
    """Neither optimizer nor checkpoint of a loss that uses it sees it, and .train() of that loss does not reach it."""
    network, images = Scorer(), images_of(rng, 3, 1, 4, 4, dtype=torch.float32)
    loss = ImageLoss(frozen(network))
    before, statistics = loss.penalty(images), network.body[0].running_mean.clone()
    assert not list(loss.parameters())
    assert not list(loss.buffers())
    assert not loss.state_dict()
    assert not any(isinstance(m, Scorer) for m in loss.modules())
    loss.train()
    close(loss.penalty(images), before)
    network.train()  # its owner, if it has one, may
    close(loss.penalty(images), before)
    close(network.body[0].running_mean, statistics)


def test_a_frozen_network_follows_the_images(rng):
    network, images = Scorer(), images_of(rng, 3, 1, 4, 4)
    value = frozen(network)(images)
    assert value.dtype == torch.float64
    close(value.float(), frozen(network)(images.float()), rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(network)(images.float()).dtype == torch.float32


@pytest.mark.gpu
def test_a_frozen_network_moves_to_the_gpu(rng):
    images, where = images_of(rng, 3, 1, 4, 4, dtype=torch.float32), torch.eye(4)
    for penalty in (frozen(Scorer()), mask(squared, where), masked_mean(squared, where), high_frequencies(0.3), laplacian):
        close(penalty(images.cuda()).cpu(), penalty(images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "read", "got"),
    [
        (Scorer(10), None, r"gave shape \(3, 10\)"),
        (Scorer(), lambda out: out, r"gave shape \(3, 1\)"),
        (Scorer(10), lambda out: out.mean(), r"gave shape \(\)"),
        (Scorer(), lambda out: {"reward": out}, "gave dict"),
    ],
)
def test_what_is_not_one_value_per_image_is_refused(network, read, got):
    with pytest.raises(ValueError, match=rf"a frozen Scorer {got} instead of one value per image, \(3,\): pass read="):
        frozen(network, read)(torch.zeros(3, 1, 4, 4))


@pytest.fixture(scope="module")
def blends():
    """32 MNIST digits, and the means of pairs of them, which can be read as two digits."""
    digits = to_float(load("mnist").pixels[:32])
    return digits, (digits + digits.roll(1, 0)) / 2


def test_unreadable_digit_is_the_networks_doubt(blends):
    network, (digits, blended) = MNISTFeatures.trained(), blends
    close(unreadable_digit(blended), -network.read(network(blended)).amax(-1).log(), rtol=1e-4, atol=1e-6)
    assert unreadable_digit(digits).mean() < 0.05
    assert 0.1 < unreadable_digit(blended).mean() < unreadable_digit(blended).max() < math.log(10)


def test_unreadable_digit_is_descended_by_its_gradient(blends, rng):
    images = blends[1].double() + 0.01 * images_of(rng, 32, 1, 28, 28)  # max pooling has kinks where the background is flat
    slope_matches(unreadable_digit, images, rng, rtol=1e-4, step=1e-9)  # and so do ReLUs: a step that crosses none
    images = images.detach()
    for _ in range(20):
        images.requires_grad_()
        (grad,) = torch.autograd.grad(unreadable_digit(images).sum(), images)
        images = (images - grad).detach()
    assert unreadable_digit(images).max() < 0.05


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (1, 28, 28)])
def test_unreadable_digit_reads_mnist_only(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\), got"):
        unreadable_digit(torch.zeros(shape))


# --- comparisons with x0 ------------------------------------------------------------------------------------------------


def test_paired_hands_over_both():
    paired = Paired(lambda images, x0: (images - 2 * x0).flatten(1).sum(1))
    close(paired(torch.ones(2, 1, 1, 3), torch.full((2, 1, 1, 3), 5.0)), torch.full((2,), 3 * (1 - 10.0)))


@pytest.mark.parametrize("kernel_size", [11, 7, 3])
def test_ssim_is_the_papers_formula(kernel_size, rng):
    """Against scipy's Gaussian filter, in 8-bit units with the paper's constants."""
    x, y = (images_of(rng, 3, 2, 16, 13) * 0.4 for _ in range(2))
    y = 0.6 * x + 0.4 * y

    def mean(a):
        return gaussian_filter(a, 1.5 * kernel_size / 11, mode="mirror", radius=kernel_size // 2, axes=(-2, -1))

    a, b = ((v.numpy() + 1) * 127.5 for v in (x, y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    var_a, var_b, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    similarity = (2 * mean(a) * mean(b) + c1) * (2 * cov + c2) / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (var_a + var_b + c2))
    close(ssim(kernel_size)(x, y), torch.from_numpy(1 - similarity.mean((1, 2, 3))), rtol=1e-6)


def test_ssim_of_flat_images_is_their_luminance():
    """Greys around the middle are alike: in [-1, 1] as it is, torchmetrics would call their luminances opposite."""
    levels = torch.tensor([0.45, 0.55, 1.0], dtype=torch.float64)
    grey, middle = (2 * levels - 1).reshape(3, 1, 1, 1).expand(3, 1, 12, 12), torch.zeros(3, 1, 12, 12, dtype=torch.float64)
    expected = 1 - (levels + 1e-4) / (0.25 + levels**2 + 1e-4)
    close(ssim()(grey, middle), expected, atol=1e-8)
    close(ssim()(grey.float(), middle.float()), expected.float(), rtol=0, atol=2e-4)  # of flat patches, E[x²] - E[x]² is noise


def test_ssim_of_the_same_image_is_zero_and_stationary(rng):
    images = images_of(rng, 2, 3, 14, 14).requires_grad_()
    value = ssim()(images, images.detach())
    close(value, torch.zeros(2, dtype=torch.float64))
    (grad,) = torch.autograd.grad(value.sum(), images)
    close(grad, torch.zeros_like(grad))


def test_ssim_is_not_rounded_by_autocast(rng):
    x, y = (0.3 * images_of(rng, 2, 1, 16, 16, dtype=torch.float32) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        under = ssim()(x, y)
    close(under, ssim()(x, y), rtol=0, atol=0)


def test_ssim_refuses_windows_that_do_not_fit():
    with pytest.raises(ValueError, match="11 pixels does not fit 12x10 images: pass a smaller odd kernel_size"):
        ssim()(torch.zeros(1, 1, 12, 10), torch.zeros(1, 1, 12, 10))
    for size in (8, 1, 45):
        with pytest.raises(ValueError, match="odd and between 3 and 43"):
            ssim(size)


def test_lpips_without_torchvision_says_what_to_install(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(ImportError, match="pip install torchvision, in the build made for torch"):
        lpips()


@pytest.fixture
def backbone(monkeypatch):
    """torchmetrics' LPIPS with its own linear weights, on an AlexNet of random ones: torchvision cannot be had here."""

    def alexnet(net, pretrained):
        assert (net, pretrained) == ("alexnet", True)
        torch.manual_seed(0)
        conv, relu, pool = nn.Conv2d, nn.ReLU, nn.MaxPool2d
        return nn.Sequential(
            *(conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, 1, 2), relu(), pool(3, 2)),
            *(conv(192, 384, 3, 1, 1), relu(), conv(384, 256, 3, 1, 1), relu(), conv(256, 256, 3, 1, 1), relu(), pool(3, 2)),
        )

    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", alexnet)


def test_lpips_is_torchmetrics_within_the_range(backbone, rng):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as peer

    x, y = (images_of(rng, 3, 3, 32, 32, dtype=torch.float32).tanh() for _ in range(2))
    distance = lpips()
    close(distance(x, y), peer(x, y, net_type="alex", reduction="none"), rtol=1e-5)
    close(distance(x, x), torch.zeros(3))
    close(distance(x[:1], y[:1]), distance(x, y)[:1], rtol=1e-4)  # torchmetrics squeezes a single image to a scalar


def test_lpips_sees_grey_images_as_grey(backbone, rng):
    x, y = (images_of(rng, 2, 1, 32, 32, dtype=torch.float32).tanh() for _ in range(2))
    close(lpips()(x, y), lpips()(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        lpips()(torch.zeros(2, 4, 32, 32), torch.zeros(2, 4, 32, 32))


@pytest.mark.trap(14)
def test_lpips_has_its_own_slope_outside_the_range(backbone, rng):
    """A clamp would have none there, a straight-through one that of another image."""
    images, x0 = 1.5 + images_of(rng, 1, 1, 32, 32).abs(), images_of(rng, 1, 1, 32, 32).tanh()
    distance = lpips()
    grad = slope_matches(lambda x: distance(x, x0), images, rng)
    assert (grad != 0).float().mean() > 0.9


def test_the_network_of_lpips_is_frozen_and_owned_by_no_one(backbone, monkeypatch):
    made = []
    own = nn.Module.requires_grad_
    monkeypatch.setattr(nn.Module, "requires_grad_", lambda self, wanted: (made.append(self), own(self, wanted))[1])
    holder = nn.Module()
    holder.penalty = lpips()
    assert made
    assert not any(p.requires_grad for network in made for p in network.parameters())
    assert not list(holder.parameters())
