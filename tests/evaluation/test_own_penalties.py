"""Penalties of images whose penalties are known."""

import pytest
import torch

import xhat
from xhat.evaluation.penalties import mean_penalties, own_penalties
from xhat.losses.penalties import Paired, total_variation


class Nothing(torch.nn.Module):
    def forward(self, z, t):
        return 0 * z


def test_penalties_of_known_images():
    flat = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    stripes = flat.clone()
    stripes[..., ::2] = 0
    stripes[..., 1::2] = 255
    both = {"total_variation": total_variation, "brightness": lambda images: images.flatten(1).mean(1)}
    assert mean_penalties(flat, both) == {"total_variation": 0.0, "brightness": pytest.approx(100 / 127.5 - 1)}
    assert mean_penalties(stripes, {"own": total_variation}) == {"own": pytest.approx(2.0)}


def test_penalties_see_decoded_images_and_those_of_pairs_are_left_out():
    def brightness(images):
        return images.flatten(1).mean(1)

    terms = {
        "denoise": xhat.Denoising(),
        "bright": xhat.ImageLoss(brightness),
        "decoded": xhat.ImageLoss(brightness, decode=lambda z: 2 * z + 1),
        "near": xhat.ImageLoss(Paired(lambda a, b: (a - b).flatten(1).mean(1))),
    }
    denoiser = xhat.Denoiser(Nothing(), xhat.Cosine(), xhat.V)
    own = own_penalties(xhat.Objective(denoiser, {name: xhat.Term(loss) for name, loss in terms.items()}))
    images = torch.full((2, 1, 4, 4), 0.25)
    assert {name: float(penalty(images)[0]) for name, penalty in own.items()} == {"bright": 0.25, "decoded": 1.5}
