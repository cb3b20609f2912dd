"""Schedules against finite differences, their own inverses, and diffusers' tables."""

import math

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xhat
from oracles import CONTINUOUS, DISCRETE, PRESERVING, SCHEDULES, ZERO_TERMINAL, inner_times
from xhat import Cosine, Discrete, Flow
from xhat.diffusion.schedules import LinearLogSNR

ALL = list(SCHEDULES)


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_is_preserved(name):
    t = torch.linspace(0, 1, 301, dtype=torch.float64)
    schedule = SCHEDULES[name]()
    close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("name", ALL)
def test_logsnr_is_that_of_alpha_and_sigma_and_decreases(name):
    schedule = SCHEDULES[name]()
    t = torch.linspace(0.011, 0.99, 301, dtype=torch.float64)
    alpha, sigma, logsnr = schedule.alpha(t), schedule.sigma(t), schedule.logsnr(t)
    assert (alpha > 0).all()
    assert (sigma > 0).all()
    close(logsnr, 2 * (alpha / sigma).log(), atol=1e-9)
    assert (logsnr.diff() < 0).all()


@pytest.mark.parametrize("name", ALL)
def test_dlogsnr_is_the_derivative_of_logsnr(name):
    schedule = SCHEDULES[name]()
    t = torch.linspace(0.0137, 0.9881, 57, dtype=torch.float64).requires_grad_()  # off the grid
    (slope,) = torch.autograd.grad(schedule.logsnr(t).sum(), t)
    close(schedule.dlogsnr(t).detach(), slope, rtol=1e-8)
    h = 1e-6
    difference = (schedule.logsnr(t.detach() + h) - schedule.logsnr(t.detach() - h)) / (2 * h)
    close(schedule.dlogsnr(t).detach(), difference.detach(), rtol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_dlogsnr_on_the_grid_is_the_mean_of_both_sides(name):
    schedule = SCHEDULES[name]()
    steps, abar = schedule.steps, schedule.alpha_bar
    t = torch.arange(1, steps, dtype=torch.float64) / steps
    mean_slope = (abar[2:] - abar[:-2]) / 2 * steps
    close(schedule.dlogsnr(t), mean_slope / (abar * schedule.noise_variance)[1:-1], rtol=1e-10)


@pytest.mark.parametrize("name", ALL)
@given(x=st.floats(0.003, 0.997))
def test_t_of_inverts_logsnr(name, x):
    schedule = SCHEDULES[name]()
    if schedule.steps is not None and abs(x * schedule.steps - round(x * schedule.steps)) < 2e-3:
        x = round(x * schedule.steps) / schedule.steps
    t = torch.tensor([max(x, schedule.t_min)], dtype=torch.float64)
    close(schedule.t_of(schedule.logsnr(t)), t, rtol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_t_of_keeps_the_ends(name):
    schedule = SCHEDULES[name]()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    close(schedule.t_of(schedule.logsnr(ends)), ends, atol=1e-7)


def test_learned_t_of_carries_the_gradients_of_the_implicit_function():
    schedule = SCHEDULES["learned"]()
    logsnr = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    t = schedule.t_of(logsnr)
    slope, own = torch.autograd.grad(t, (logsnr, schedule.gamma_0))
    close(slope, 1 / schedule.dlogsnr(t).detach())
    h = 1e-6
    with torch.no_grad():
        schedule.gamma_0 += h
        up = schedule.t_of(logsnr)
        schedule.gamma_0 -= 2 * h
        down = schedule.t_of(logsnr)
    close(own, ((up - down) / (2 * h)).squeeze(), rtol=1e-6)


def test_learned_stays_monotone_for_any_parameters(rng):
    schedule = xhat.schedules.Learned(features=16).double()
    for p in schedule.parameters():
        p.data += torch.randn(p.shape, generator=rng, dtype=torch.float64)
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    assert (schedule.logsnr(t).diff() < 0).all()


@pytest.mark.parametrize("name", ZERO_TERMINAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.trap(7)
def test_zero_terminal_means_exactly_no_signal(name, dtype):
    schedule, one = SCHEDULES[name](), torch.ones(1, dtype=dtype)
    assert schedule.alpha(one).item() == 0
    assert schedule.sigma(one).item() == 1
    assert schedule.logsnr(one).item() == -math.inf


@pytest.mark.parametrize("logsnr_max", [3.0, 7.3, 10.0, 12.6, 15.0, 20.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.trap(7)
def test_cosine_ends_at_exactly_zero_alpha_whatever_its_start(logsnr_max, dtype):
    schedule, one = Cosine(-math.inf, logsnr_max), torch.ones(1, dtype=dtype)
    assert schedule.alpha(one).item() == 0
    assert schedule.logsnr(one).item() == -math.inf


@pytest.mark.parametrize("base", [Cosine(-6, 9), LinearLogSNR(), Discrete.linear_beta(50, 1e-3, 0.2)], ids=repr)
@pytest.mark.trap(21)
def test_rescaling_returns_a_new_schedule_and_follows_lin_et_al(base):
    t = inner_times(base, 30)
    before = base.alpha(t).clone(), base.logsnr(t).clone()
    rescaled = base.rescale_zero_terminal()
    assert rescaled is not base
    close(base.alpha(t), before[0], rtol=0, atol=0)
    close(base.logsnr(t), before[1], rtol=0, atol=0)
    first, last = base.alpha(torch.tensor([1 / base.steps if base.steps else 0.0, 1.0], dtype=torch.float64))
    alpha = (base.alpha(t) - last) * first / (first - last)
    close(rescaled.alpha(t), alpha, rtol=1e-12)
    close(rescaled.logsnr(t), (alpha**2 / (1 - alpha**2)).log(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.trap(23)
def test_flow_applies_its_shift_once(shift):
    """alpha, sigma, logsnr and t_of are one map: sigma = shift t/(1 + (shift - 1) t) (SD3, eq. 23)."""
    schedule, t = Flow(shift=shift), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    sigma = shift * t / (1 + (shift - 1) * t)
    close(schedule.sigma(t), sigma)
    close(schedule.alpha(t), 1 - sigma)
    close(schedule.logsnr(t), 2 * ((1 - sigma) / sigma).log(), atol=1e-9)
    close(schedule.t_of(2 * ((1 - sigma) / sigma).log()), t)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_tables_equal_diffusers(config):
    rescale = config.get("rescale_betas_zero_snr", False)
    peer = diffusers.DDPMScheduler(num_train_timesteps=1000, **config)
    match config["beta_schedule"]:
        case "linear":
            own = Discrete.linear_beta(1000)
        case "scaled_linear":
            own = Discrete.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
        case "squaredcos_cap_v2":
            own = Discrete.cosine_beta(1000)
    own = own.rescale_zero_terminal() if rescale else own
    # diffusers forms the products in float32, 1000 roundings of relative size 6e-8
    close(own.alpha_bar[1:], peer.alphas_cumprod.double(), rtol=3e-5 if rescale else 1e-5, atol=1e-6)
    if not rescale:  # a rescaled table of diffusers is 0 or 2^-48 at its end by version; ours is exactly 0
        table = Discrete.from_diffusers(peer)
        close(table.alpha_bar[1:], peer.alphas_cumprod.double(), rtol=0, atol=0)
        k = torch.tensor([0, 500, 999])
        close(table.alpha(table.time(k + 1)).double() ** 2, peer.alphas_cumprod[k].double(), rtol=1e-6)


def test_from_diffusers_reads_the_table_of_other_schedulers_and_refuses_flow_matching():
    peer = diffusers.DDIMScheduler(num_train_timesteps=50)
    assert Discrete.from_diffusers(peer).steps == 50
    with pytest.raises(ValueError, match="Flow"):
        Discrete.from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler())


def test_a_last_beta_of_one_is_a_zero_terminal_schedule():
    schedule = Discrete.from_betas(torch.tensor([0.1, 0.2, 1.0]))
    t = schedule.time(torch.tensor([1, 2, 3]))
    close(schedule.alpha(t) ** 2, torch.tensor([0.9, 0.72, 0.0]), rtol=1e-6)
    assert torch.isfinite(schedule.sigma(t)).all()


def test_small_betas_do_not_cancel():
    """1 - alpha_bar from betas of 1e-12 keeps its digits: 1 - (1 - b)² = b (2 - b)."""
    schedule = Discrete.from_betas(torch.tensor([1e-12, 1e-12, 0.5], dtype=torch.float64))
    close(schedule.sigma(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)) ** 2, torch.tensor([1e-12, 2e-12]).double())


@given(index=st.integers(1, 4000))
def test_index_and_time_are_inverse_in_float32(index):
    schedule = SCHEDULES["linear_beta"]() if index <= 100 else _long()
    i = torch.tensor([index])
    assert schedule.index(schedule.time(i)).item() == index
    t = schedule.time(i)
    close(schedule.alpha(t).double(), schedule.alpha_bar[index].sqrt().reshape(1), rtol=1e-7)


_cache = []


def _long():
    if not _cache:
        _cache.append(Discrete.cosine_beta(4000))
    return _cache[0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Discrete.from_betas(torch.tensor([0.1, 0.0])), "betas"),
        (lambda: Discrete.from_betas(torch.tensor([0.1, 1.5])), "betas"),
        (lambda: Discrete.from_betas(torch.tensor([1.0, 0.5])), "alpha_bar"),
        (lambda: Discrete(torch.tensor([0.5])), "alpha_bar"),
        (lambda: Discrete(torch.tensor([0.5, 0.6])), "alpha_bar"),
        (lambda: Discrete(torch.tensor([1.0, 0.5, 0.1])), "alpha_bar"),
        (lambda: Discrete(torch.tensor([0.9, float("nan"), 0.1])), "alpha_bar"),
        (lambda: Cosine(5.0, -5.0), "logsnr"),
        (lambda: LinearLogSNR(-math.inf, 5.0), "finite"),
        (lambda: xhat.schedules.Learned(5.0, 5.0), "logsnr"),
        (lambda: Flow(shift=0.0), "shift"),
        (lambda: Flow(t_min=1.0), "t_min"),
        (lambda: xhat.schedules.VE(0.0, 1.0), "sigma_min"),
        (lambda: xhat.schedules.VE(2.0, 1.0), "sigma_min"),
        (lambda: xhat.schedules.VE().rescale_zero_terminal(), "VE"),
        (lambda: xhat.schedules.Learned().rescale_zero_terminal(), "logsnr_min"),
    ],
)
def test_bad_input_is_refused_with_a_reason(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.float(),
        lambda m: m.to("cpu", torch.float16),
    ],
    ids=["half", "bfloat16", "float", "to_half"],
)
@pytest.mark.parametrize("name", ["linear_beta", "discrete_rescaled", "learned"])
@pytest.mark.trap(6)
def test_casts_of_a_model_leave_the_schedule_as_it_is(cast, name):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule, 20)
    before = schedule.alpha(t).detach(), schedule.logsnr(t).detach()
    model = cast(torch.nn.Sequential(schedule, torch.nn.Linear(1, 1)))
    assert {v.dtype for v in schedule.state_dict().values()} == {torch.float64}
    assert model[1].weight.dtype != torch.float64
    close(schedule.alpha(t).detach(), before[0], rtol=0, atol=0)
    close(schedule.logsnr(t).detach(), before[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.trap(6)
def test_the_first_step_adds_noise_under_autocast_and_bf16_casts(dtype):
    """alpha_bar_1 = .9999 is 1 in bf16; the schedule still says sigma = .01."""
    schedule = Discrete.linear_beta(1000).to(dtype)
    t = schedule.time(torch.tensor([1]))
    with torch.autocast("cpu", torch.bfloat16):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert sigma.dtype == torch.float32
    close(sigma, torch.tensor([0.01]), rtol=1e-6)
    x0 = torch.ones(4)
    assert (alpha * x0 + sigma * torch.ones(4) != x0).all()


@pytest.mark.trap(6)
def test_learned_schedule_is_not_rounded_by_autocast():
    schedule, t = xhat.schedules.Learned(), torch.linspace(0, 1, 11)
    plain = schedule.logsnr(t).detach()
    with torch.autocast("cpu", torch.bfloat16):
        close(schedule.logsnr(t).detach(), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_float32_times_give_float32_values_near_the_float64_ones(name):
    schedule, t = SCHEDULES[name](), torch.linspace(0.01, 0.99, 99)
    schedule = schedule.float() if name != "learned" else schedule
    for f in (schedule.alpha, schedule.sigma, schedule.logsnr):
        close(f(t).double().detach(), f(t.double()).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [(-15.0, 15.0), (-5.0, 13.3), (-math.inf, 9.0), (-7.3, 3.1)])
def test_no_noise_is_left_where_a_cosine_schedule_is_clean(ends):
    """Exactly: a logsnr that is NaN there, instead of infinite, makes black images of a chain that ends there."""
    schedule = xhat.Cosine(*ends)
    clean = torch.tensor(schedule.t_clean, dtype=torch.float64)
    assert float(schedule.sigma(clean)) == 0
    assert float(schedule.logsnr(clean)) == math.inf
