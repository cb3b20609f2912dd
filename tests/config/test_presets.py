"""Each preset's loss against its paper's formula, written out here without the library's targets and weightings."""

import itertools
import math
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

from xhat.config.build import build_denoiser, build_objective, build_sampler, build_sampling_times
from xhat.config.parsing import read_config
from xhat.config.presets import preset_names
from xhat.data.shape import DataShape

NETWORKS = {
    "unet": "unet(widths=(8, 8), blocks=(1, 1), embedding=16)",
    "dit": "dit(width=16, depth=1, heads=2)",
    "level_posterior": "level_posterior(widths=(8, 8), blocks=(1, 1), features=4)",
}


def setting(name, spread=False):
    """Objective of a preset with a small, non-zero network in float64, a draw, and the network's raw output on it."""
    config = read_config(files("xhat.config.presets") / f"{name}.yaml")
    config = replace(config, network=NETWORKS[config.network.split("(")[0]])
    torch.manual_seed(0)
    denoiser = build_denoiser(config, DataShape(1, 8, 4 if config.labels else None))
    objective = build_objective(config, denoiser).double()
    for p in denoiser.net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x0 = torch.randint(0, 256, (64, 1, 8, 8)).double() / 127.5 - 1
    if spread:  # all noise levels, also those that the paper's density hardly ever draws
        schedule = objective.denoiser.schedule
        t = torch.linspace(max(schedule.t_min, 0.002), 0.998, 64, dtype=torch.float64)
        t = t if schedule.steps is None else schedule.time(schedule.index(t))
        objective.times.sample = lambda on, n, generator, step: (t, 1 / objective.times.relative_density(on, t))
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
    weight = objective.terms["denoise"].loss
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


def softmax_ends(x0, eps, g0, g1):
    """VDM's prior and reconstruction, bits/dim, per image."""
    var1, mean1 = 1 / (1 + math.exp(-g1)), x0 * math.sqrt(1 / (1 + math.exp(g1)))
    prior = 0.5 * (var1 + mean1**2 - 1 - math.log(var1))
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    logits = -0.5 * math.exp(-g0) * ((x0 + math.exp(g0 / 2) * eps).unsqueeze(-1) - levels) ** 2
    chosen = ((x0 + 1) * 127.5).round().long().unsqueeze(-1)
    return mean(prior - logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)) / math.log(2)


def vdm_bound(g0, g1, network):
    def formula(objective, draw):
        gamma = g0 + (g1 - g0) * draw.t  # float32, as images are made: at logsnr 14 its rounding is seen
        alpha, sigma = column(torch.sigmoid(-gamma).sqrt()), column(torch.sigmoid(gamma).sqrt())
        z = alpha * draw.x0 + sigma * draw.noise
        error = (draw.noise - network(objective, z, draw.t, gamma, alpha, sigma)) ** 2
        return 0.5 * (g1 - g0) * mean(error) / math.log(2) + softmax_ends(draw.x0, draw.normal("decoder"), g0, g1)

    return formula


def noise_of_x0(objective, z, t, gamma, alpha, sigma):
    return (z - alpha * raw_at(objective, column(1 / torch.sigmoid(-gamma).sqrt()) * z, (gamma / 8).double())) / sigma


def vdm_learned(objective, draw):
    """The network's own gamma and its slope by automatic differentiation; the ends where it starts."""
    t = draw.t.double().requires_grad_()
    gamma = -objective.denoiser.schedule.logsnr(t)
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    gamma = gamma.detach()
    z = column(torch.sigmoid(-gamma).sqrt()) * draw.x0 + column(torch.sigmoid(gamma).sqrt()) * draw.noise
    diffusion = 0.5 * slope * mean((draw.noise - raw_at(objective, z, draw.t)) ** 2) / math.log(2)
    return diffusion + softmax_ends(draw.x0, draw.normal("decoder"), -13.3, 5.0)


def iddpm(objective, draw):
    """improved-diffusion's rescaled hybrid: mse + 0.001 · T · vb; the terms from its own formulas, the bins by erf."""
    f = [math.cos((i / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(4001)]
    betas = torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(f)], dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    i = (draw.t.double() * 4000).round().long() - 1
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)
    tilde[0] = tilde[1]
    at = {k: column(v[i]) for k, v in {"ab": bar, "before": before, "beta": betas, "tilde": tilde}.items()}
    z = at["ab"].sqrt() * draw.x0 + (1 - at["ab"]).sqrt() * draw.noise
    eps, v = raw_at(objective, z, draw.t).chunk(2, dim=1)
    share = (v + 1) / 2
    log_variance = share * at["beta"].log() + (1 - share) * at["tilde"].log()
    x0_hat = (z - (1 - at["ab"]).sqrt() * eps) / at["ab"].sqrt()
    c0 = at["before"].sqrt() * at["beta"] / (1 - at["ab"])
    step = 0.5 * (log_variance - at["tilde"].log() - 1 + at["tilde"] / log_variance.exp())
    step = step + 0.5 * (c0 * (draw.x0 - x0_hat)) ** 2 / log_variance.exp()
    normal = torch.distributions.Normal(x0_hat, (log_variance / 2).exp())
    upper = torch.where(draw.x0 > 0.999, 1.0, normal.cdf(draw.x0 + 1 / 255))
    lower = torch.where(draw.x0 < -0.999, 0.0, normal.cdf(draw.x0 - 1 / 255))
    first = -(upper - lower).clamp(min=1e-300).log()
    vb = torch.where(i == 0, mean(first), mean(step)) / math.log(2)
    prior = 0.5 * (bar[-1] * draw.x0**2 - bar[-1] - torch.log1p(-bar[-1])) / math.log(2)
    return mean((draw.noise - eps) ** 2) + 0.001 * (4000 * vb + mean(prior))


FORMULAS = {
    "iddpm": iddpm,
    "vdm": vdm_learned,
    "mnist-likelihood": vdm_bound(-14.0, 8.0, noise_of_x0),
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
    term = next(iter(objective.terms.values()))
    ours = term.weight * term.loss(objective.denoiser, draw) * draw.importance
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-8)


DENSITIES = {
    "edm": lambda t: (torch.log(0.002 * (80 / 0.002) ** t), -1.2, 1.2),
    "edm2": lambda t: (torch.log(0.002 * (80 / 0.002) ** t), -0.4, 1.0),
    "sd3": lambda t: (torch.logit(t), 0.0, 1.0),
    "jit": lambda t: (torch.logit(1 - t), -0.8, 0.8),
    "mnist": lambda t: (torch.logit(t), 0.8, 1.0),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_preset_draws_the_papers_density(name):
    """The paper's normal variable has its mean and standard deviation."""
    _, objective, _ = setting(name)
    t, _ = objective.times.sample(objective.denoiser.schedule, 20000, torch.Generator().manual_seed(0))
    values, loc, scale = DENSITIES[name](t.double().clamp(1e-6, 1 - 1e-6))
    assert values.mean().item() == pytest.approx(loc, abs=0.01)
    assert values.std().item() == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize("name", FORMULAS)
def test_preset_can_be_sampled(name):
    config, objective, _ = setting(name)
    times = build_sampling_times(config.sampling.spacing, objective.denoiser.schedule, config.sampling.steps)
    assert len(times) == config.sampling.steps + 1
    assert times[0].item() == pytest.approx(1)
    assert times[-1] == objective.denoiser.schedule.t_clean if config.sampling.spacing == "karras" else times[-1] == 0
    assert build_sampler(config.sampling.sampler)
