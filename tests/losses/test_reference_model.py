"""Staying near a frozen model: distances against formulas, gradients against finite differences, the tilted optimum."""

import copy

import jaxtyping
import peft
import pytest
import torch
from torch import nn

from xhat import (
    DDIM,
    DDPM,
    NOISE,
    X0,
    Cosine,
    Denoiser,
    Denoising,
    FullChain,
    ImageLoss,
    Last,
    Objective,
    Surrogate,
    Term,
    V,
    sample,
)
from xhat.diffusion.gaussians import transition
from xhat.losses.reference import OnOthers, ToReference, TrajectoryKL
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.spacings import uniform_times


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, z, t, label=None):
        shift = 0 if label is None else 0.1 * label.to(z).unsqueeze(1)
        return self.last(torch.tanh(self.first(torch.cat([z, t.to(z).unsqueeze(1)], 1)))) + shift


def denoiser(seed=0):
    return Denoiser(Net(seed), Cosine(), V).double()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_of(objective, x0, step=0, **more):
    return objective.draw(x0, step=step, **more)


@pytest.mark.parametrize("space", [NOISE, X0])
def test_the_distance_at_the_draw(space):
    own, other = denoiser(), denoiser(1)
    loss = ToReference(other, space=space, weighting=lambda logsnr, schedule: torch.sigmoid(logsnr))
    objective = Objective(own, {"near": Term(loss)})
    draw = draw_of(objective, normal(4, 2))
    a, b = (m(draw.z, draw.t).in_space(space) for m in (own, other))
    weight = torch.sigmoid(own.schedule.logsnr(draw.t))
    torch.testing.assert_close(objective.per_image("near", draw), draw.importance * weight * (a - b).square().mean(1))
    assert not any(p.requires_grad for p in other.parameters())
    assert all(name.startswith("denoiser.") for name, _ in objective.named_parameters())
    assert "near" not in str(objective.state_dict().keys())


def test_the_reference_of_an_adapter_is_the_model_without_it():
    """The same weights, no second copy; at first the distance is 0, then that to the model as it was."""
    own = denoiser()
    before = copy.deepcopy(own)
    own.net.requires_grad_(False)
    own.net = peft.get_peft_model(own.net, peft.LoraConfig(r=2, target_modules=["first", "last"])).double()
    objective = Objective(own, {"near": Term(ToReference())})
    x0 = normal(4, 2)
    assert objective.per_image("near", draw_of(objective, x0)).tolist() == [0] * 4
    with torch.no_grad():
        for name, p in own.named_parameters():
            if "lora" in name:
                p += 0.1
    draw = draw_of(objective, x0)
    far = (own(draw.z, draw.t).noise - before(draw.z, draw.t).noise).square().mean(1)
    found = objective.per_image("near", draw)
    torch.testing.assert_close(found, draw.importance * far)
    found.mean().backward()
    assert all((p.grad is not None) == ("lora" in name) for name, p in own.net.named_parameters())
    assert all(p.requires_grad == ("lora" in name) for name, p in own.net.named_parameters())
    with pytest.raises(ValueError, match='term "near": the network has no adapters to switch off'):
        Objective(denoiser(), {"near": Term(ToReference())})(x0)


def test_the_distance_along_the_models_own_chain():
    """At the images before a random step; each step of four comes up."""
    own, other = denoiser(), denoiser(1)
    along = FullChain(DDIM(), steps=4)
    objective = Objective(own, {"near": Term(ToReference(other, along=along))})
    x0, seen = normal(4, 2), set()
    for step in range(20):
        draw = draw_of(objective, x0, step)
        k = int(draw.uniform(1, "reference")[0] * 4)
        times, z = uniform_times(own.schedule, 4), along.start(own, draw)
        with torch.no_grad():
            for i in range(k):
                z, _ = DDIM().step(own.given(None), z, times[i].expand(4), times[i + 1].expand(4), z, ())
            wanted = (own(z, times[k].expand(4)).noise - other(z, times[k].expand(4)).noise).square().mean(1)
        torch.testing.assert_close(objective.per_image("near", draw), wanted)
        seen.add(k)
    assert seen == {0, 1, 2, 3}


def kl_by_hand(own, other, draw, eta, steps):
    """Sum over steps of |difference of means|² / (2 variance), DDIM's rule written out."""
    times = uniform_times(own.schedule, steps)
    z, total = own.schedule.prior_std().to(draw.x0) * draw.normal("chain"), torch.zeros(len(draw.t), dtype=torch.float64)
    for i in range(steps):
        t, s = times[i].expand(len(z)), times[i + 1].expand(len(z))
        c2 = eta**2 * transition(own.schedule, t, s).posterior_variance
        alpha, rest = own.schedule.alpha(s), (own.schedule.sigma(s) ** 2 - c2).clamp(min=0).sqrt()
        means = [alpha[:, None] * p.x0 + rest[:, None] * p.noise for p in (own(z, t), other(z, t))]
        if i + 1 == steps:
            t, s = times[i - 1].expand(len(z)), times[i].expand(len(z))
        at = c2 if i + 1 < steps else transition(own.schedule, t, s).posterior_variance
        total = total + (means[0] - means[1]).square().sum(1) / (2 * at)
        z = means[0] + c2.sqrt()[:, None] * draw.normal("sampler", i)
    return total


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_the_divergence_of_trajectories(eta, checkpoint):
    own, other = denoiser(), denoiser(1)
    along = FullChain(DDIM(eta), steps=4, differentiate=AllSteps(), checkpoint=checkpoint)
    objective = Objective(own, {"kl": Term(TrajectoryKL(other, along))})
    draw = draw_of(objective, normal(4, 2))
    found, wanted = objective.per_image("kl", draw), kl_by_hand(own, other, draw, eta, 4)
    torch.testing.assert_close(found, wanted)
    parameters = list(own.net.parameters())
    ours, theirs = (torch.autograd.grad(x.sum(), parameters) for x in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_the_divergence_is_that_of_finite_differences():
    own, other = denoiser(), denoiser(1)
    objective = Objective(own, {"kl": Term(TrajectoryKL(other, FullChain(DDPM(), steps=3, differentiate=AllSteps())))})
    x0, weight = normal(4, 2), own.net.last.weight
    objective.per_image("kl", draw_of(objective, x0)).mean().backward()
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 3] += sign * h
            values.append(objective.per_image("kl", draw_of(objective, x0)).mean())
            weight[1, 3] -= sign * h
    torch.testing.assert_close(weight.grad[1, 3], (values[0] - values[1]) / (2 * h), rtol=1e-5, atol=1e-7)


def test_random_steps_have_the_mean_of_all():
    own, other = denoiser(), denoiser(1)
    terms = {
        "all": Term(TrajectoryKL(other, FullChain(DDIM(1.0), steps=4, differentiate=AllSteps()))),
        "one": Term(TrajectoryKL(other, FullChain(DDIM(1.0), steps=4, differentiate=Surrogate(1)))),
        "four": Term(TrajectoryKL(other, FullChain(DDIM(1.0), steps=4, differentiate=Surrogate(4)))),
    }
    objective = Objective(own, terms)
    x0 = normal(64, 2)
    with torch.no_grad():
        found = {name: [] for name in terms}
        for step in range(60):
            draw = draw_of(objective, x0, step)
            for name in terms:
                found[name].append(objective.per_image(name, draw).mean())
    torch.testing.assert_close(torch.stack(found["four"]), torch.stack(found["all"]))
    ones = torch.stack(found["one"])
    assert (ones.mean() - torch.stack(found["all"]).mean()).abs() < 4 * ones.std() / 60**0.5


def test_a_reference_is_a_denoiser(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="in a config, name a loss of your own that loads it"):
        ToReference("runs/demo")


def test_what_has_no_density_is_refused():
    with pytest.raises(ValueError, match="a trajectory has 2 steps or more"):
        TrajectoryKL(denoiser(), FullChain(DDPM(), steps=1, differentiate=AllSteps()))
    with pytest.raises(ValueError, match="have no density"):
        TrajectoryKL(denoiser(), FullChain(DDIM(), differentiate=AllSteps()))
    with pytest.raises(ValueError, match=r"AllSteps\(\) or Surrogate\(K\)"):
        TrajectoryKL(denoiser(), FullChain(DDPM(), differentiate=Last(1)))
    other = Denoiser(Net(), Cosine(-5.0, 5.0), V).double()
    with pytest.raises(ValueError, match='term "near": the reference has other noise levels'):
        Objective(denoiser(), {"near": Term(ToReference(other))})(normal(4, 2))


def test_prior_preservation_is_the_loss_on_other_images():
    """The same as the loss on a batch of these images, with their conditions, at the same times."""
    own, loss = denoiser(), Denoising(X0)
    objective = Objective(own, {"denoise": Term(loss), "prior": Term(OnOthers(loss))})
    x0, prior, label = normal(4, 2), normal(4, 2, seed=3), torch.tensor([0, 1, 2, 3])
    extra = {"prior": prior, "prior_cond": {"label": label}}
    draw = draw_of(objective, x0, cond={"label": label + 1}, extra=extra)
    noise = draw.normal("prior")
    a, s = (v(draw.t)[:, None] for v in (own.schedule.alpha, own.schedule.sigma))
    wanted = (own(a * prior + s * noise, draw.t, {"label": label}).x0 - prior).square().mean(1)
    torch.testing.assert_close(objective.per_image("prior", draw), draw.importance * wanted)
    assert not torch.equal(noise, draw.noise)
    objective(x0, cond={"label": label}, extra=extra)["loss"].backward()
    for bad in ({}, {"prior": prior[:, :1]}):
        with pytest.raises(ValueError, match=r'extra\["prior"\] must be images \(4, 2\), as those of the batch'):
            objective(x0, cond={"label": label}, extra=bad)


class Ring(nn.Module):
    """The exact noise of eight Gaussians of deviation 0.3 on a circle of radius 1, and a correction that is learned."""

    spread = 0.3

    def __init__(self, schedule):
        super().__init__()
        angles = torch.arange(8) * torch.pi / 4
        self.register_buffer("centres", torch.stack([angles.cos(), angles.sin()], 1))
        self.schedule = (schedule,)
        torch.manual_seed(0)
        self.learned = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        nn.init.zeros_(self.learned[-1].weight)
        nn.init.zeros_(self.learned[-1].bias)

    def forward(self, z, t):
        alpha, sigma = (v(t).to(z)[:, None] for v in (self.schedule[0].alpha, self.schedule[0].sigma))
        variance = alpha**2 * self.spread**2 + sigma**2
        apart = z[:, None] - alpha[:, None] * self.centres
        share = torch.softmax(-apart.square().sum(2) / (2 * variance), 1)
        noise = sigma / variance * (share[:, :, None] * apart).sum(1)
        logsnr = self.schedule[0].logsnr(t).to(z)[:, None] / 10
        return noise + sigma * self.learned(torch.cat([z, logsnr, torch.sin(3 * logsnr), alpha], 1))


@pytest.mark.slow
def test_reward_and_divergence_follow_the_tilted_optimum():
    """E_start[p_ref(x | start) exp(reward / beta) / its integral], what the sum's optimum is; and p_ref(x) exp(reward / beta),
    which it is nearly, because DDIM(1) forgets where it started."""
    schedule, beta, toward = Cosine(-8.0, 8.0), 0.5, torch.tensor([1.0, 0.0])
    own = Denoiser(Ring(schedule), schedule, NOISE)
    other = copy.deepcopy(own)
    chain = FullChain(DDIM(1.0), steps=10, differentiate=AllSteps(), checkpoint=False)
    terms = {
        "reward": Term(ImageLoss(lambda x: -x @ toward, chain, expect=None)),
        "kl": Term(TrajectoryKL(other, chain), weight=beta),
    }
    objective, steps = Objective(own, terms), 200
    optimizer = torch.optim.Adam(own.net.learned.parameters(), lr=5e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        objective(shape=(128, 2))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()

    @torch.no_grad()
    def samples(model, starts, each):
        """(starts, each, 2) ends of chains, `each` of them from the same start."""
        generator = torch.Generator().manual_seed(9)
        z = float(schedule.prior_std()) * torch.randn(starts, 1, 2, generator=generator).expand(-1, each, -1).reshape(-1, 2)
        return sample(model, DDIM(1.0), z, uniform_times(schedule, 10), generator=generator).view(starts, each, 2)

    after, many = samples(own, 20_000, 1).mean((0, 1)), samples(other, 500, 300)
    share = (many @ toward / beta).softmax(1)
    optimum = (share[:, :, None] * many).sum(1).mean(0)
    flat = many.view(-1, 2)
    tilted = (flat @ toward / beta).softmax(0) @ flat
    print(f"mean {after.tolist()}, of the optimum {optimum.tolist()}, of the tilt {tilted.tolist()}")
    assert flat.mean(0).norm() < 0.05
    assert optimum[0] > 0.7
    torch.testing.assert_close(after, optimum, rtol=0, atol=0.03)
    torch.testing.assert_close(after, tilted, rtol=0, atol=0.06)
