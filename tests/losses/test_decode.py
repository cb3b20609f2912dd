"""Losses that see pixels of latents: the same gradient at a part of the memory, features against a formula written out."""

import math

import diffusers
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from xhat import Cosine, Denoiser, Denoising, Draw, ImageLoss, Objective, Term, V
from xhat.diffusion.weightings import high_snr, high_snr_latents
from xhat.errors import RunError
from xhat.losses.decode import Decode
from xhat.losses.penalties import latent_perceptual


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(4)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        shift_factor=0.1,
    )


class Net(nn.Module):
    """z times a learned number for each channel."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1, 4).view(1, 4, 1, 1))

    def forward(self, z, t):
        return z * self.gain


def bright(images):
    return images.square().flatten(1).mean(1)


def saved_bytes(call):
    kept = {}

    def pack(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        value = call()
    return sum(kept.values()), value


@pytest.mark.parametrize("chunk", [1, 2, 4, 16])
def test_the_gradient_is_the_plain_one_and_little_is_saved(vae, chunk):
    latents = normal(6, 4, 8, 8).requires_grad_()
    plain, ours = Decode(vae, checkpoint=False, chunk=100), Decode(vae, chunk=chunk)
    much, wanted = saved_bytes(lambda: bright(plain(latents)).mean())
    little, found = saved_bytes(lambda: bright(ours(latents)).mean())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    (expected,) = torch.autograd.grad(wanted, latents)
    (got,) = torch.autograd.grad(found, latents)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert much > 5 * little


def test_it_is_the_autoencoders_decoding_and_nobody_owns_it(vae):
    latents = normal(3, 4, 8, 8)
    decode = Decode(vae.train())
    with torch.no_grad():
        wanted = vae.decode(latents / vae.config.scaling_factor + 0.1).sample
        torch.testing.assert_close(decode(latents), wanted)
    loss = ImageLoss(bright, decode=decode)
    objective = Objective(Denoiser(Net(), Cosine(), V), {"bright": Term(loss)}).train()
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())
    assert [name for name, _ in objective.named_parameters()] == ["denoiser.net.gain"]
    torch.testing.assert_close(Decode(lambda z: 2 * z, chunk=2)(latents), 2 * latents)


def draw_of(denoiser, x0, t, step=0):
    noise = normal(*x0.shape, seed=7)
    a, s = (v(t).view(-1, 1, 1, 1) for v in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    z = a * x0 + s * noise
    return Draw(x0, t, noise, z, denoiser(z, t), torch.ones_like(t), None, step=step, seed=0)


def test_only_rows_that_count_are_decoded_and_at_most_so_many():
    """Each chosen image stands for those left out: the mean over steps is the mean of all."""
    seen = []

    def decode(latents):
        seen.append(len(latents))
        return latents

    denoiser = Denoiser(Net(), Cosine(), V)
    x0, t = normal(8, 4, 8, 8), torch.tensor([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.999, 0.9999])
    counts = torch.tensor([1.0] * 6 + [0.0] * 2)
    own = {"weighting": lambda logsnr, schedule: counts.to(logsnr), "expect": None}
    whole = ImageLoss(bright, decode=Decode(decode, chunk=100), **own)
    few = ImageLoss(bright, decode=Decode(decode, chunk=100, most=2), **own)
    wanted = whole(denoiser, draw_of(denoiser, x0, t))
    assert seen == [6]
    values = torch.stack([few(denoiser, draw_of(denoiser, x0, t, step)) for step in range(300)])
    assert set(seen[1:]) == {2}
    assert ((values > 0).sum(1) == 2).all()
    shares = (values > 0).float().mean(0)
    assert (shares[:6] - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 300)
    chosen = values[0].nonzero().squeeze(1)
    torch.testing.assert_close(values[0][chosen], 3 * wanted[chosen])


def test_out_of_memory_is_one_line():
    def decode(latents):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(RunError, match=r"out of memory while decoding latents \(3, 4, 8, 8\): lower chunk \(4\)"):
        Decode(decode)(normal(3, 4, 8, 8))
    for options in ({"chunk": 0}, {"most": 0}):
        with pytest.raises(ValueError, match="both are 1 or more"):
            Decode(decode, **options)


@pytest.mark.parametrize("blocks", [1, 3])
def test_latent_perceptual_is_its_formula(vae, blocks):
    """Berrada et al. 2025, section 3.2: features by hooks on a whole decoding, each number by loops."""
    x0, x = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    found = latent_perceptual(vae, blocks)(x, x0)

    def features(latents):
        kept = []
        parts = [vae.decoder.mid_block, *vae.decoder.up_blocks[:blocks]]
        hooks = [part.register_forward_hook(lambda m, i, out: kept.append(out)) for part in parts]
        with torch.no_grad():
            vae.decode(latents / vae.config.scaling_factor + 0.1)
        for hook in hooks:
            hook.remove()
        return kept

    wanted = torch.zeros(2)
    pairs = list(zip(features(x), features(x0), strict=True))
    for level, (mine, clean) in enumerate(pairs):
        for b in range(2):
            counts = torch.ones_like(clean[b])
            if level >= 2:
                for c, plane in enumerate(clean[b]):
                    low, high = plane.flatten().quantile(0.02), plane.flatten().quantile(0.98)
                    good = (plane > low - 2 * plane.std()) & (plane < high + 2 * plane.std())
                    counts[c] = opened(closed(good), 1 if level == 2 else 2)
            error = ((mine[b] - clean[b]) / (clean[b].norm(dim=0) + 1e-6)) ** 2
            of_channels = [(m * e).sum() / m.sum() for m, e in zip(counts, error, strict=True)]
            wanted[b] += 0.5 ** min(level, 3) * sum(of_channels) / len(of_channels) / len(pairs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert latent_perceptual(vae, blocks)(x0, x0).tolist() == [0, 0]


def closed(good):
    return around(good, 1, any)


def opened(good, reach):
    return around(good, reach, all)


def around(good, reach, over):
    height, width = good.shape
    out = torch.zeros(good.shape)
    for i in range(height):
        for j in range(width):
            near = good[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            out[i, j] = over(near.flatten().tolist())
    return out > 0


def test_latent_perceptual_as_a_term(vae):
    denoiser = Denoiser(Net(), Cosine(), V)
    loss = ImageLoss(latent_perceptual(vae, 2), weighting=high_snr_latents(), expect=None)
    objective = Objective(denoiser, {"denoise": Term(Denoising()), "features": Term(loss)})
    out = objective(normal(4, 4, 8, 8))
    out["loss"].backward()
    assert out["features"] > 0
    assert denoiser.net.gain.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="blocks must be 1 to 3"):
        latent_perceptual(vae, 4)
    with pytest.raises(ValueError, match="reads the decoder of an AutoencoderKL, got a Linear"):
        latent_perceptual(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("weighting", "shape", "centre"),
    [
        (high_snr(), (1, 28, 28), 3.0),
        (high_snr(), (3, 256, 256), 3 - 2 * math.log(256 / 28)),
        (high_snr(), (3, 256, 256), -1.42594),
        (high_snr(), (4, 128, 128), -0.03965),
        (high_snr(), (3, 64, 16), 3 - 2 * math.log(32 / 28)),
        (high_snr(1.5), (3, 256, 256), 1.5),
        (high_snr(), (3, 64), 3.0),
        (high_snr_latents(), (4, 128, 128), 1.1),
        (high_snr_latents(), (4, 64, 64), 1.1 + 2 * math.log(2)),
        (high_snr_latents(0.3), (4, 64, 64), 0.3),
    ],
)
def test_where_a_penalty_counts_depends_on_the_resolution(weighting, shape, centre):
    """Half at the centre; published: -1.7 at 256 x 256 pixels, where the rule says -1.4."""
    found = weighting.of_size(shape)
    at = torch.tensor([centre, centre + 1], dtype=torch.float64)
    torch.testing.assert_close(
        found(at, Cosine()), torch.tensor([0.5, 1 / (1 + math.exp(-2))], dtype=torch.float64), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(("decode", "centre"), [(None, 3 - 2 * math.log(8 / 28)), (lambda z: z, 1.1 - 2 * math.log(8 / 128))])
def test_an_image_loss_knows_the_resolution(decode, centre):
    denoiser = Denoiser(Net(), Cosine(), V)
    t = denoiser.schedule.t_of(torch.tensor([centre] * 2, dtype=torch.float64)).float()
    draw = draw_of(denoiser, normal(2, 4, 8, 8), t)
    found = ImageLoss(bright, decode=decode, expect=None).scale(denoiser, draw)
    torch.testing.assert_close(found, torch.full((2,), 0.5), rtol=1e-3, atol=1e-3)
