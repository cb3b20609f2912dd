"""What a notebook shows of an objective: the five choices, a picture; and a grid of images."""

import pytest
import torch

import xhat
from xhat import gates, multipliers, penalties, times
from xhat.objective.describe import described


@pytest.fixture
def objective():
    terms = {
        "denoise": xhat.Term(xhat.Denoising(xhat.X0, xhat.min_snr(5))),
        "smooth": xhat.Term(
            xhat.ImageLoss(penalties.total_variation, xhat.FullChain(xhat.DDIM(), 10, xhat.Last(2))),
            weight=multipliers.GradientRatio(0.1),
            when=gates.every(4),
        ),
    }
    torch.manual_seed(0)
    net = xhat.UNet(channels=1, widths=(8, 8), blocks=(1, 1), embedding=16)
    return xhat.Objective(xhat.Denoiser(net, xhat.Cosine(), xhat.V), terms, times.Uniform(), seed=7)


def test_the_five_choices_are_shown(objective):
    said = objective.described()
    assert said["network output"].startswith("v, of UNet with ")
    assert said["term denoise"] == "1 · Denoising(x0, min_snr(5))"
    assert said["term smooth"].startswith("GradientRatio(0.1")
    assert "ImageLoss(total_variation, FullChain(DDIM(0), 10, Last(2))" in said["term smooth"]
    assert said["term smooth"].endswith(", every(4)")
    assert said["times"] == "Uniform() on Cosine(), logsnr -15 to 15"
    assert said["reverse variance"] == "Posterior()"
    assert said["seed"] == "7"
    assert all(text in repr(objective) for text in said.values())
    assert objective._repr_html_().count("<tr>") == len(said)
    assert "<" not in objective._repr_html_().replace("<table>", "").replace("</table>", "").replace("<tr>", "").replace(
        "</tr>", ""
    ).replace("<th>", "").replace("</th>", "").replace("<td>", "").replace("</td>", "")


def test_a_term_says_what_it_is():
    term = xhat.Term(xhat.Denoising(xhat.V, where=xhat.masked_mean("mask")), weight=0.5)
    assert repr(term) == "0.5 · Denoising(v, where=masked_mean('mask'))"
    assert repr(xhat.LearnedUncertainty(xhat.Denoising(xhat.V))) == "LearnedUncertainty(Denoising(v))"


def test_what_differs_is_said_differently():
    def mine(images):
        return images.flatten(1).mean(1)

    assert described(xhat.ImageLoss(mine)) != described(xhat.ImageLoss(penalties.total_variation))
    tables = [described(xhat.Discrete.linear_beta(100)), described(xhat.Discrete.cosine_beta(100))]
    assert tables[0] != tables[1]
    assert described(xhat.Discrete.linear_beta(100)) == tables[0]
    assert "0x" not in described(xhat.ImageLoss(lambda x: x.flatten(1).mean(1)))


def test_the_picture_has_the_weighting_and_the_density(objective):
    weighting, density = objective.plot().axes
    x, y = weighting.lines[0].get_data()
    logsnr = torch.as_tensor(x, dtype=torch.float64)
    wanted = objective.effective_weighting(logsnr).detach()
    torch.testing.assert_close(torch.as_tensor(y, dtype=wanted.dtype), wanted / wanted.max())
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in density.lines[0].get_data())
    schedule = objective.denoiser.schedule
    torch.testing.assert_close(y, -1 / schedule.dlogsnr(schedule.t_of(x)), rtol=1e-6, atol=1e-9)


def test_a_grid_shows_images_of_either_kind():
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    picture = xhat.grid(images, columns=3, zoom=1)
    assert picture.size == (3 * 9 + 1, 2 * 9 + 1)
    assert xhat.grid(images.float() / 127.5 - 1, columns=3, zoom=1).tobytes() == picture.tobytes()
    assert xhat.grid(torch.rand(2, 3, 8, 8)).mode == "RGB"
    with pytest.raises(ValueError, match="a grid is made of images"):
        xhat.grid(torch.rand(2, 5))
