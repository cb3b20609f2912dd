"""Networks of signals, volumes and vectors: the U-Net by its number of axes, and the MLP."""

import pytest
import torch
from torch.nn import functional as F

import xhat
from xhat.networks.mlp import MLP
from xhat.networks.unet import UNet, folded, unfolded

SIZES = {1: (16,), 2: (8, 12), 3: (8, 4, 8)}
SMALL = {"widths": (8, 16), "blocks": (1, 1), "embedding": 16}


def net(axes, **kwargs):
    torch.manual_seed(0)
    made = UNet(3, size=SIZES[axes], **SMALL, **kwargs)
    for p in made.parameters():  # it is zero at first
        torch.nn.init.normal_(p, std=0.1)
    return made.double()


@pytest.mark.parametrize("by", [1, 2, 3])
def test_folding_is_pixel_unshuffle_by_axes(by):
    x = torch.randn(2, 3, 6, 12)
    assert torch.equal(folded(x, by), F.pixel_unshuffle(x, by))
    for shape in ((2, 3, 12), (2, 3, 6, 12), (2, 3, 6, 12, 6)):
        x = torch.randn(shape)
        assert folded(x, by).shape == (2, 3 * by ** (len(shape) - 2), *(side // by for side in shape[2:]))
        assert torch.equal(unfolded(folded(x, by), by), x)


def test_folded_channels_are_in_the_order_of_pixel_unshuffle():
    """An image whose rows are all one axis more: folding the third axis alone is folding a signal."""
    line = torch.randn(2, 3, 12)
    assert torch.equal(folded(line, 2)[:, 4], line[:, 2, 0::2])
    assert torch.equal(folded(line, 2)[:, 5], line[:, 2, 1::2])
    block = torch.randn(1, 2, 4, 4, 4)
    for number in range(8):
        i, j, k = number // 4, number // 2 % 2, number % 2
        assert torch.equal(folded(block, 2)[0, 8 + number], block[0, 1, i::2, j::2, k::2])


@pytest.mark.parametrize("axes", SIZES)
def test_shapes_labels_and_gradients(axes):
    z, t = torch.randn(2, 3, *SIZES[axes], dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    made = net(axes, classes=4, outputs=6)
    out = made(z, t, torch.tensor([0, 4]))
    assert out.shape == (2, 6, *SIZES[axes])
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in made.parameters())
    kernels = made.hidden_matrices()
    assert all(p.ndim == axes + 2 for p in kernels)
    assert len(kernels) == len({id(p) for p in kernels}) > 4


@pytest.mark.parametrize("axes", SIZES)
def test_a_shift_by_a_cell_away_from_the_edges_shifts_the_output(axes):
    """What a convolutional network is: equivariant to shifts by fold · 2^(levels - 1), where its padding is not seen."""
    made = UNet(1, size=(32,) * axes, fold=1, widths=(4, 4), blocks=(1, 1), embedding=8).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    z, all_axes = torch.zeros(1, 1, *(32,) * axes, dtype=torch.float64), tuple(range(2, 2 + axes))
    middle = (slice(None), slice(None), *(slice(12, 20),) * axes)
    z[middle] = torch.randn(z[middle].shape, dtype=torch.float64)
    t = torch.full((1,), 0.3, dtype=torch.float64)
    a = made(z, t).roll((2,) * axes, dims=all_axes)
    b = made(z.roll((2,) * axes, dims=all_axes), t)
    torch.testing.assert_close(a[middle], b[middle], atol=1e-9, rtol=1e-9)
    assert (a - b).abs().max() > 1e-6  # the padding is seen at the edges


def test_a_signal_is_an_image_of_one_row_of_kernels():
    """Conv1d with kernel k is Conv2d with k in its middle row, on an image of one row."""
    made = net(1, fold=1)
    z, t = torch.randn(2, 3, 16, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    first = torch.nn.Conv2d(3, 8, (1, 3), padding=(0, 1), dtype=torch.float64)
    first.weight.data, first.bias.data = made.first.weight.data[:, :, None], made.first.bias.data
    torch.testing.assert_close(first(z[:, :, None])[:, :, 0], made.first(z))
    assert made(z, t).shape == z.shape


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ((), "the data are vectors, choose network mlp"),
        ((4, 4, 4, 4), "samples of 4 axes"),
        ((18,), "multiples of 4, not 18: crop or pad them"),
        ((8, 8, 6), "multiples of 4, not 8x8x6: crop or pad them"),
        (30, "multiples of 4, not 30: set image_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, line):
    with pytest.raises(ValueError, match=line):
        UNet(1, size=size)
    if size != 30:
        with pytest.raises(ValueError, match=r"this DiT is of images|multiples"):
            xhat.DiT(1, size=size)


@pytest.mark.parametrize("classes", [None, 3])
def test_an_mlp_of_vectors(classes):
    torch.manual_seed(0)
    made = MLP(5, classes=classes, width=16, depth=2, embedding=8)
    z, t = torch.randn(4, 5), torch.rand(4)
    label = None if classes is None else torch.tensor([0, 1, 2, 3])
    assert bool((made(z, t, label) == 0).all())
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    out = made(z, t, label)
    out.sum().backward()
    assert out.shape == z.shape
    assert all(p.grad is not None for p in made.parameters())
    assert len(made.hidden_matrices()) == 4
    one = made(z[2:3], t[2:3], None if label is None else label[2:3])
    torch.testing.assert_close(one, out[2:3])
    with pytest.raises(ValueError, match="of vectors: of signals, images and volumes choose unet"):
        MLP(5, size=(8,))
