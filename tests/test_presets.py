"""Each preset's loss against its paper's formula, written out here without the library's targets and weightings."""

import itertools
import math
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

from xhat.commands.parsing import read_config
from xhat.config import DataShape, build_denoiser, build_objective, build_sampler, build_times
from xhat.presets import preset_names

NETWORKS = {"unet": "unet(widths=(8, 8), blocks=(1, 1), embedding=16)", "dit": "dit(width=16, depth=1, heads=2)"}


def setting(name, spread=False):
    """Objective of a preset with a small, non-zero network in float64, a draw, and the network's raw output on it."""
    config = read_config(files("xhat") / "presets" / f"{name}.yaml")
    config = replace(config, network=NETWORKS[config.network.split("(")[0]])
    torch.manual_seed(0)
    denoiser = build_denoiser(config, DataShape(1, 8, 4 if config.labels else None))
    objective = build_objective(config, denoiser).double()
    for p in denoiser.net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x0 = torch.rand(64, 1, 8, 8, dtype=torch.float64) * 2 - 1
    if spread:  # all noise levels, also those that the paper's density hardly ever draws
        schedule = objective.denoiser.schedule
        t = torch.linspace(max(schedule.t_min, 0.002), 0.998, 64, dtype=torch.float64)
        t = t if schedule.steps is None else schedule.time(schedule.index(t))
        objective.times.sample = lambda n, generator: (t, 1 / objective.times.relative_density(t))
    draw = objective.draw(x0, step=3)
    return config, objective, draw


def mean(images):
    return images.flatten(1).mean(1)


def column(values):
    return values.double().reshape(-1, 1, 1, 1)


def alphas_bar(name, t):
    """alpha_bar from the papers' betas."""
    if name == "linear":
        betas, steps = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 1000
    else:
        steps = int(name)
        f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(f)], dtype=torch.float64)
    return (1 - betas).cumprod(0)[(t.double() * steps).round().long() - 1]


def raw_at(objective, z, t):
    """The bare network, called as the papers' pseudo-code does."""
    return objective.denoiser.net(z, t)


def simple(name):
    def formula(objective, draw):
        ab = column(alphas_bar(name, draw.t))
        z = ab.sqrt() * draw.x0 + (1 - ab).sqrt() * draw.noise
        return mean((draw.noise - raw_at(objective, z, draw.t)) ** 2)

    return formula


def p2(objective, draw):
    ab = alphas_bar("linear", draw.t)
    return simple("linear")(objective, draw) / (1 + ab / (1 - ab))


def min_snr(objective, draw):
    ab = alphas_bar("1000", draw.t)
    z = column(ab.sqrt()) * draw.x0 + column((1 - ab).sqrt()) * draw.noise
    return (ab / (1 - ab)).clamp(max=5) * mean((draw.x0 - raw_at(objective, z, draw.t)) ** 2)


def edm(objective, draw, log_variance=0.0):
    sigma, data = 0.002 * (80 / 0.002) ** draw.t.double(), 0.5
    s = column(sigma)
    z = draw.x0 + s * draw.noise
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    c_in, c_noise = 1 / (s**2 + data**2).sqrt(), sigma.log() / 4
    denoised = c_skip * z + c_out * raw_at(objective, c_in * z, c_noise)
    return (sigma**2 + data**2) / (sigma * data) ** 2 * mean((denoised - draw.x0) ** 2)


def edm2(objective, draw):
    weight = objective.terms["denoise"].loss.weight
    torch.nn.init.normal_(weight.gains)
    c_noise = torch.log(0.002 * (80 / 0.002) ** draw.t.double()) / 4
    features = math.sqrt(2) * torch.cos(c_noise.unsqueeze(1) * weight.frequencies + weight.phases)
    u = features @ weight.gains / math.sqrt(weight.gains.numel())
    return edm(objective, draw) / u.exp() + u


def vdm(objective, draw):
    gamma = -13.3 + 18.3 * draw.t.double()
    z = column(torch.sigmoid(-gamma).sqrt()) * draw.x0 + column(torch.sigmoid(gamma).sqrt()) * draw.noise
    return 0.5 * 18.3 * mean((draw.noise - raw_at(objective, z, draw.t)) ** 2)


def flow(objective, draw):
    t = column(draw.t)
    return mean((raw_at(objective, (1 - t) * draw.x0 + t * draw.noise, draw.t) - (draw.noise - draw.x0)) ** 2)


def jit(objective, draw):
    """JiT's own time runs from noise to data: s = 1 - t; v = (x - z)/(1 - s), the division clipped at 0.05."""
    s = column(1 - draw.t.double())
    z = s * draw.x0 + (1 - s) * draw.noise
    x = raw_at(objective, z, draw.t)
    v, v_hat = (draw.x0 - z) / (1 - s).clamp(min=0.05), (x - z) / (1 - s).clamp(min=0.05)
    return mean((v - v_hat) ** 2)


def v_loss(objective, draw):
    u_min, u_max = (2 / math.pi * math.atan(math.exp(-limit / 2)) for limit in (15, -15))
    angle = column(math.pi / 2 * (u_min + (u_max - u_min) * draw.t.double()))
    z = angle.cos() * draw.x0 + angle.sin() * draw.noise
    return mean((raw_at(objective, z, draw.t) - (angle.cos() * draw.noise - angle.sin() * draw.x0)) ** 2)


FORMULAS = {
    "ddpm": simple("linear"),
    "iddpm-simple": simple("4000"),
    "min-snr": min_snr,
    "p2": p2,
    "edm": edm,
    "edm2": edm2,
    "vdm-simple": vdm,
    "rectified-flow": flow,
    "sd3": flow,
    "jit": jit,
    "mnist": v_loss,
}


def test_every_preset_has_a_formula():
    assert set(preset_names()) == set(FORMULAS)


@pytest.mark.parametrize("spread", [False, True], ids=["drawn", "spread"])
@pytest.mark.parametrize("name", FORMULAS)
def test_preset_is_the_papers_loss(name, spread):
    """Per image, weight and importance included: in the papers, which correct for no density, each sample counts once."""
    _, objective, draw = setting(name, spread)
    expected = FORMULAS[name](objective, draw)
    (term,) = objective.terms.values()
    ours = term.weight * term.loss(objective.denoiser, draw) * draw.importance
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-8)


DENSITIES = {
    "edm": lambda t: (torch.log(0.002 * (80 / 0.002) ** t), -1.2, 1.2),
    "edm2": lambda t: (torch.log(0.002 * (80 / 0.002) ** t), -0.4, 1.0),
    "sd3": lambda t: (torch.logit(t), 0.0, 1.0),
    "jit": lambda t: (torch.logit(1 - t), -0.8, 0.8),
    "mnist": lambda t: (torch.logit(t), 0.0, 1.0),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_preset_draws_the_papers_density(name):
    """The paper's normal variable has its mean and standard deviation."""
    _, objective, _ = setting(name)
    t, _ = objective.times.sample(20000, torch.Generator().manual_seed(0))
    values, loc, scale = DENSITIES[name](t.double().clamp(1e-6, 1 - 1e-6))
    assert values.mean().item() == pytest.approx(loc, abs=0.01)
    assert values.std().item() == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize("name", FORMULAS)
def test_preset_can_be_sampled(name):
    config, objective, _ = setting(name)
    times = build_times(config.sampling.spacing, objective.denoiser.schedule, config.sampling.steps)
    assert len(times) == config.sampling.steps + 1
    assert times[0].item() == pytest.approx(1)
    assert times[-1] == 0
    assert build_sampler(config.sampling.sampler)
