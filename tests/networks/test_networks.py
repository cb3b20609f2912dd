"""Our two networks: shapes for any data, float32 edges, the identity at first, and their matrices."""

import pytest
import torch

from xhat.networks.dit import DiT, sine_positions
from xhat.networks.level_posterior import LevelPosterior
from xhat.networks.unet import UNet

SMALL = {
    UNet: {"widths": (8, 16), "blocks": (1, 1), "embedding": 16},
    DiT: {"width": 16, "depth": 2, "heads": 2, "patch": 4},
}


@pytest.fixture(params=SMALL, ids=lambda c: c.__name__)
def kind(request):
    return request.param


def make(kind, **kwargs):
    torch.manual_seed(0)
    network = kind(**{**SMALL[kind], **kwargs})
    for p in network.parameters():  # away from the zeros of the start, so that every path shows
        torch.nn.init.normal_(p, std=0.2)
    return network


@pytest.mark.parametrize(("channels", "outputs", "size"), [(1, None, 28), (3, 6, 16), (1, 2, 8)])
def test_any_data(kind, channels, outputs, size):
    network = make(kind, channels=channels, outputs=outputs, size=size, classes=3)
    z = torch.randn(2, channels, size, size)
    out = network(z, torch.rand(2), torch.tensor([0, 3]))
    assert out.shape == (2, outputs or channels, size, size)


def test_starts_at_zero(kind):
    network = kind(**SMALL[kind])
    assert torch.equal(network(torch.randn(2, 1, 28, 28), torch.rand(2)), torch.zeros(2, 1, 28, 28))


def test_every_parameter_learns(kind):
    network = make(kind, classes=3)
    network(torch.randn(4, 1, 28, 28), torch.rand(4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_images_do_not_see_each_other(kind):
    """No batch statistics: what an image becomes depends on it alone."""
    network, z, t = make(kind).double(), torch.randn(3, 1, 28, 28).double(), torch.rand(3).double()
    torch.testing.assert_close(network(z, t)[1:2], network(z[1:2], t[1:2]), rtol=1e-10, atol=1e-10)


@pytest.mark.trap(6)
def test_low_noise_is_seen_under_bf16_autocast(kind):
    """z = -1 + 0.001 noise is a constant in bf16; the float32 first layer still tells two noises apart."""
    seen = {}
    network = make(kind)
    network.first.register_forward_hook(lambda module, inputs, output: seen.setdefault("out", []).append(output))
    t = torch.zeros(1)
    for sign in (1, -1):
        with torch.autocast("cpu", torch.bfloat16):
            out = network(torch.full((1, 1, 28, 28), -1.0) + sign * 0.001, t)
        assert out.dtype == torch.float32
    first, second = seen["out"]
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)


def test_the_body_runs_in_bf16_under_autocast(kind):
    network, dtypes = make(kind), []
    inner = network.bottom[0] if kind is UNet else network.blocks[0]
    inner.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 1, 28, 28), torch.rand(1))
    assert dtypes == [torch.bfloat16]


def test_no_label_is_the_null_class(kind):
    network, z, t = make(kind, classes=5), torch.randn(2, 1, 28, 28), torch.rand(2)
    assert torch.equal(network(z, t), network(z, t, torch.tensor([5, 5])))
    assert not torch.equal(network(z, t), network(z, t, torch.tensor([1, 5])))


def test_a_label_without_classes_is_refused(kind):
    with pytest.raises(ValueError, match="no classes"):
        make(kind)(torch.randn(1, 1, 28, 28), torch.rand(1), torch.tensor([0]))


def test_sizes_that_do_not_fit_are_refused(kind):
    with pytest.raises(ValueError, match="set image_size"):
        kind(size=30, **SMALL[kind])


def test_hidden_matrices_are_hidden(kind):
    """They map hidden channels to hidden channels: no edge, no conditioning, no bias."""
    network = make(kind, channels=3)
    hidden = {id(p) for p in network.hidden_matrices()}
    names = {name for name, p in network.named_parameters() if id(p) in hidden}
    assert names
    assert all(p.ndim >= 2 for p in network.hidden_matrices())
    assert not any(word in name for name in names for word in ("first", "last", "embedding", "film", "modulation", "bias"))


def test_positions_are_all_different():
    positions = sine_positions(7, 5, 32)
    distances = torch.cdist(positions, positions) + 10 * torch.eye(35)
    assert positions.shape == (35, 32)
    assert distances.min() > 0.1


def test_the_network_compiles_without_graph_breaks(kind):
    network = make(kind, classes=3)
    explained = torch._dynamo.explain(network)(torch.randn(2, 1, 28, 28), torch.rand(2), torch.tensor([0, 1]))
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("kind", [UNet, DiT, LevelPosterior])
def test_two_networks_share_no_memory(kind):
    """A table that is made once and kept would be one weight of both."""
    made = [kind(size=8) for _ in range(2)]
    places = [{x.untyped_storage().data_ptr() for x in (*net.parameters(), *net.buffers())} for net in made]
    assert places[0].isdisjoint(places[1])


def test_a_bottleneck_lets_a_patch_through_in_so_many_numbers():
    """The map of patches to tokens has that rank, and the network starts at zero as without."""
    network = DiT(**SMALL[DiT], bottleneck=3)
    wide, narrow = network.first
    assert torch.linalg.matrix_rank(narrow.weight @ wide.weight) == 3
    assert torch.equal(network(torch.randn(2, 1, 28, 28), torch.rand(2)), torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="bottleneck"):
        DiT(**SMALL[DiT], bottleneck=70_000)
    with pytest.raises(ValueError, match="bottleneck"):
        DiT(**SMALL[DiT], bottleneck=0)
