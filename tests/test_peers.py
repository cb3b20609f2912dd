"""Step by step equality with diffusers, on its own tables and with the same noise."""

import math

import diffusers
import pytest
import torch

import xhat
from oracles import SHAPE
from xhat import DDIM, DDPM, NOISE, X0, Denoiser, Discrete, Flow, V
from xhat.bound.exact import evaluate
from xhat.bound.terms import bits_per_dim, form_of
from xhat.diffusion.variances import FORWARD, LEARNED, POSTERIOR
from xhat.sampling.sample import sample
from xhat.sampling.samplers import DPMSolver2M, Euler
from xhat.tensors import over_images

STEPS = 50
TYPES = {"epsilon": NOISE, "v_prediction": V, "sample": X0}
BETAS = {"num_train_timesteps": STEPS, "beta_start": 1e-3, "beta_end": 0.2}


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def wide(scheduler):
    """Its tables in float64, so that a difference of formulas is not hidden by rounding."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    for name in ("final_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.ones((), dtype=torch.float64))
    return scheduler


class Net(torch.nn.Module):
    """Some smooth function of (z, t), twice as many channels on request."""

    def __init__(self, heads=1):
        super().__init__()
        self.heads = heads

    def forward(self, z, t):
        out = torch.sin(3 * z) * 0.5 + torch.cos(5 * over_images(t, z)) * z.flip(-1)
        return out if self.heads == 1 else torch.cat([out, torch.tanh(z)], dim=1)


@pytest.fixture
def z(rng):
    return torch.randn(3, *SHAPE, dtype=torch.float64, generator=rng)


def own_times(peer):
    """The peer's 0-based timesteps as times, ending at the data."""
    return torch.cat([(peer.timesteps.double() + 1) / STEPS, torch.zeros(1).double()])


def walk(peer, denoiser, sampler, z, **kwargs):
    """Each step from the same image on both sides; yields (ours, theirs)."""
    times, net, state = own_times(peer), denoiser.net, sampler.init(z)
    for i, k in enumerate(peer.timesteps):
        t, s = times[i].expand(len(z)), times[i + 1].expand(len(z))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(i), dtype=z.dtype)
        ours, state = sampler.step(denoiser.given(None), z, t, s, noise, state)
        extra = {"generator": torch.Generator().manual_seed(i)} if sampler.stochastic else {}
        theirs = peer.step(net(z, t), k, z, **extra, **kwargs).prev_sample
        yield ours, theirs
        z = theirs


@pytest.mark.parametrize("prediction", TYPES)
@pytest.mark.parametrize("steps", [STEPS, 10])
@pytest.mark.parametrize(
    ("variance_type", "variance"),
    [
        ("fixed_small", POSTERIOR),
        ("fixed_small_log", POSTERIOR),
        ("fixed_large", FORWARD),
        ("learned_range", LEARNED),  # fixed_large_log takes the root of log beta in diffusers, which is NaN: nothing to equal
    ],
)
def test_ddpm(variance_type, variance, steps, prediction, z):
    """fixed_small = POSTERIOR, fixed_large = FORWARD, learned_range = LEARNED, on the full grid and a coarser one."""
    peer = wide(diffusers.DDPMScheduler(**BETAS, variance_type=variance_type, prediction_type=prediction, clip_sample=False))
    peer.set_timesteps(steps)
    net = Net(2 if variance is LEARNED else 1)
    denoiser = Denoiser(net, Discrete.from_diffusers(peer), TYPES[prediction], variance=variance)
    for ours, theirs in walk(peer, denoiser, DDPM(), z):
        close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", TYPES)
@pytest.mark.parametrize("steps", [STEPS, 10])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta, steps, prediction, z):
    peer = wide(diffusers.DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False))
    peer.set_timesteps(steps)
    denoiser = Denoiser(Net(), Discrete.from_diffusers(peer), TYPES[prediction])
    for ours, theirs in walk(peer, denoiser, DDIM(eta), z, eta=eta):
        close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", TYPES)
def test_dpm_solver_2m(prediction, z):
    """dpmsolver++, order 2, midpoint, into sigma = 0 at first order: the same rule; diffusers keeps sigmas in float32."""
    peer = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    peer.set_timesteps(12)
    denoiser = Denoiser(Net(), Discrete.from_diffusers(peer), TYPES[prediction])
    for ours, theirs in walk(peer, denoiser, DPMSolver2M(), z):
        close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.trap(23)
def test_flow_matching_euler(shift, z):
    """The same sigmas (the shift applied once) and, on them, the same Euler steps."""
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = Flow(shift)
    k = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    close(schedule.sigma(k), peer.sigmas.double()[:1000], rtol=1e-6)
    peer.set_timesteps(10)
    sigma = peer.sigmas.double()
    times = schedule.t_of(2 * ((1 - sigma) / sigma).log())
    denoiser, net = Denoiser(Net(), schedule, xhat.FLOW), Net()
    for i, step in enumerate(peer.timesteps):
        t = times[i].expand(len(z))
        theirs = peer.step(net(z, t), step, z).prev_sample.double()
        close(sample(denoiser, Euler(), z, times[i : i + 2]), theirs, rtol=1e-6, atol=1e-6)
        z = theirs


@pytest.mark.parametrize("config", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "scaled_linear"}], ids=str)
def test_noising_and_velocity(config, z, rng):
    """add_noise and get_velocity at diffusers' 0-based index k are z and V at t = (k + 1)/T."""
    peer = wide(diffusers.DDPMScheduler(**BETAS, **config))
    schedule = Discrete.from_diffusers(peer)
    noise, k = torch.randn(z.shape, dtype=torch.float64, generator=rng), torch.tensor([0, 20, STEPS - 1])
    t = (k + 1).double() / STEPS
    alpha, sigma = over_images(schedule.alpha(t), z), over_images(schedule.sigma(t), z)
    close(alpha * z + sigma * noise, peer.add_noise(z, noise, k))
    close(V.of(schedule, t, z, noise), peer.get_velocity(z, noise, k))
    close(xhat.time_inputs.diffusers_index(schedule, t), k.double())


@pytest.mark.parametrize("prediction", TYPES)
def test_predicted_x0_of_each_prediction_type(prediction, z):
    """diffusers' pred_original_sample is x0_hat."""
    peer = wide(diffusers.DDPMScheduler(**BETAS, prediction_type=prediction, clip_sample=False))
    denoiser = Denoiser(Net(), Discrete.from_diffusers(peer), TYPES[prediction])
    for k in (0, 17, STEPS - 1):
        t = torch.full((3,), (k + 1) / STEPS, dtype=torch.float64)
        close(denoiser(z, t).x0, peer.step(denoiser.net(z, t), k, z).pred_original_sample)


@pytest.mark.trap(6)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range", "learned"])
@pytest.mark.parametrize("mean", ["epsilon", "start_x", "previous_x"])
def test_every_term_of_the_bound_is_openais(mean, variance, rng):
    """Improved DDPM's L_0 .. L_{T-1} in bits/dim, written again from their formulas in float64, with an exact Phi.

    Their code itself, in float32: `benchmarks/openai_bound.py`.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)
    clipped = torch.cat([tilde[1:2], tilde[1:]]).log()
    large = torch.cat([tilde[1:2], betas[1:]]).log()
    target = {"epsilon": NOISE, "start_x": X0, "previous_x": xhat.targets.POSTERIOR_MEAN}[mean]
    reverse = {
        "fixed_small": POSTERIOR,
        "fixed_large": xhat.variances.FIXED_LARGE,
        "learned_range": LEARNED,
        "learned": LEARNED,
    }[variance]
    schedule = Discrete.linear_beta(1000)
    denoiser = Denoiser(Net(reverse.outputs), schedule, target, variance=reverse)
    steps = torch.tensor([1, 2, 3, 10, 100, 500, 1000])
    x0 = torch.randint(0, 256, (len(steps), 1, 4, 4), generator=rng).double() / 127.5 - 1
    x0[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])  # both open bins
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=rng)

    def of(table):
        return table[steps - 1].reshape(-1, 1, 1, 1)

    x_t = of(bar).sqrt() * x0 + (1 - of(bar)).sqrt() * noise
    out = denoiser.net(x_t, steps.double() / 1000)
    out, v = out.chunk(2, dim=1) if reverse is LEARNED else (out, 0.0)

    def posterior_mean(x_start):
        from_x0 = of(before).sqrt() * of(betas) / (1 - of(bar))
        return from_x0 * x_start + (1 - of(betas)).sqrt() * (1 - of(before)) / (1 - of(bar)) * x_t

    means = {
        "epsilon": lambda: posterior_mean((x_t - (1 - of(bar)).sqrt() * out) / of(bar).sqrt()),
        "start_x": lambda: posterior_mean(out),
        "previous_x": lambda: out,
    }
    log_variance = {
        "fixed_small": of(clipped).expand_as(x0),
        "fixed_large": of(large).expand_as(x0),
        "learned_range": (v + 1) / 2 * of(betas.log()) + (1 - v) / 2 * of(clipped),
        "learned": (low := of(clipped)) + (v + 1) / 2 * (of(betas.log()) - low),  # what their network would say itself
    }[variance]
    found, q = means[mean](), of(clipped)
    kl = 0.5 * (log_variance - q - 1 + (q - log_variance).exp() + (posterior_mean(x0) - found) ** 2 * (-log_variance).exp())
    normal = torch.distributions.Normal(found, (0.5 * log_variance).exp())
    upper = torch.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
    theirs = torch.where((steps == 1).reshape(-1, 1, 1, 1), -(upper - lower).log(), kl).flatten(1).mean(1) / math.log(2)
    nats = evaluate(form_of(schedule), denoiser, x0, noise, steps, torch.zeros(len(steps)).double(), None)
    usable = torch.isfinite(theirs)  # without our stable logarithm a bin far off has probability 0
    assert usable[1:].all()
    close(bits_per_dim(nats, x0)[usable], theirs[usable], rtol=1e-7)


def test_diffusers_own_table_rounds_where_ours_does_not():
    """In bf16 its first alpha_bar is 1 and no noise is added (diffusers#3005); ours still adds sigma = .01."""
    peer = diffusers.DDPMScheduler(num_train_timesteps=1000)
    assert peer.alphas_cumprod.to(torch.bfloat16)[0] == 1
    schedule = Discrete.from_diffusers(peer).to(torch.bfloat16)
    close(schedule.sigma(schedule.time(torch.tensor([1]))), torch.tensor([0.01]), rtol=1e-3)
