"""A run of an adapter: what learns is kept, averaged and resumed; what was given is neither copied nor changed."""

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn

import xhat
from xhat import Cosine, Denoiser, Denoising, FullChain, ImageLoss, Objective, Term, V
from xhat.errors import RunError
from xhat.objective.multipliers import GradientRatio
from xhat.runs.checkpoint import newest_checkpoint

BATCH = 4
OPTIONS = {"batch_size": BATCH, "checkpoint_every": 2, "eval_every": 0, "sample_every": 100, "compile": "off"}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objective_of(p):
    """With a multiplier that needs gradients of what learns, and a chain that is guided."""
    bright = ImageLoss(lambda z: z.flatten(1).mean(1), expect=None)
    chain = ImageLoss(lambda z: z.square().flatten(1).mean(1), FullChain(steps=2, guidance=2.0), expect=None)
    terms = {"denoise": Term(Denoising()), "bright": Term(bright, GradientRatio(0.1)), "chain": Term(chain, 0.01)}
    return Objective(p.denoiser, terms)


def pretrained():
    torch.manual_seed(5)
    return xhat.pretrained(tiny.stable_diffusion(), lora=2)


@pytest.fixture(scope="module")
def data():
    p = pretrained()
    images = normal(8, 3, 16, 16).clamp(-1, 1)
    x0, cond = p.encode(images, [f"a dog {i}" for i in range(8)])
    return xhat.data.from_tensors(x0, cond=cond)


def learned(p):
    return {name: x.detach().clone() for name, x in p.denoiser.named_parameters() if x.requires_grad}


class Stop(xhat.Callback):
    """Asks to stop after two steps."""

    def step(self, at):
        if at.step == 2:
            at.stop()


def names_in(path):
    with safe_open(path, framework="pt") as held:
        return list(held.keys())


def test_an_adapter_is_trained_kept_and_resumed(data, tmp_path):
    p = pretrained()
    base = {name: x.clone() for name, x in p.model.named_parameters() if "lora" not in name}
    fitted = xhat.fit(objective_of(p), data, tmp_path / "whole", max_steps=4, **OPTIONS)
    assert all(torch.equal(dict(p.model.named_parameters())[name], x) for name, x in base.items())
    after = learned(p)
    assert any(x.any() for name, x in after.items() if "lora_B" in name)

    checkpoint, _ = newest_checkpoint(tmp_path / "whole")
    for path in (checkpoint.path, tmp_path / "whole" / "ema.safetensors"):
        weights = [name for name in names_in(path) if "net." in name]
        assert weights
        assert all("lora" in name for name in weights)
    averaged = dict(fitted.denoiser.named_parameters())
    own = dict(p.denoiser.named_parameters())
    assert [name for name in own if (averaged[name] is own[name]) != ("lora" not in name)] == []

    half = pretrained()
    stopped = xhat.fit(objective_of(half), data, tmp_path / "parts", max_steps=4, callbacks=[Stop()], **OPTIONS)
    assert stopped.step == 2
    again = pretrained()
    xhat.fit(objective_of(again), data, tmp_path / "parts", max_steps=4, resume=True, **OPTIONS)
    resumed = learned(again)
    assert all(torch.equal(resumed[name], x) for name, x in after.items())

    other = pretrained()
    xhat.load(tmp_path / "whole", into=other.denoiser)
    loaded = dict(other.denoiser.named_parameters())
    assert all(torch.equal(loaded[name], x) for name, x in fitted.denoiser.named_parameters())


def test_another_base_is_refused(data, tmp_path):
    run = tmp_path / "run"
    xhat.fit(objective_of(pretrained()), data, run, max_steps=2, **OPTIONS)
    p = pretrained()
    with torch.no_grad():
        p.model.conv_in.bias += 1
    for call in (
        lambda: xhat.load(run, into=p.denoiser),
        lambda: xhat.fit(objective_of(p), data, run, max_steps=4, resume=True, **OPTIONS),
    ):
        with pytest.raises(RunError, match=r"trained on another network: model\.conv_in\.bias, which it was given, has other"):
            call()
    plain = xhat.pretrained(tiny.stable_diffusion())
    with pytest.raises(RunError, match=r"was trained on another network: model\S+, which it was given, learns here"):
        xhat.load(run, into=plain.denoiser)


class Half(nn.Module):
    """A frozen layer with statistics of its own, and one that learns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.head = nn.Linear(3, 3)

    def forward(self, z, t):
        return self.head(self.frozen(z))


def test_what_changes_without_learning_is_kept(tmp_path):
    """The statistics of a frozen normalisation, which training moves."""
    x0 = normal(16, 3)
    net = Half()
    objective = Objective(Denoiser(net, Cosine(), V), {"denoise": Term(Denoising())})
    fitted = xhat.fit(objective, x0, tmp_path / "run", max_steps=2, **OPTIONS)
    kept = [name for name in names_in(tmp_path / "run" / "ema.safetensors") if name.startswith("net.")]
    assert sorted(kept) == [
        "net.frozen.1.num_batches_tracked",
        "net.frozen.1.running_mean",
        "net.frozen.1.running_var",
        "net.head.bias",
        "net.head.weight",
    ]
    other = Denoiser(Half(), Cosine(), V)
    xhat.load(tmp_path / "run", into=other)
    assert torch.equal(other.net.frozen[1].running_mean, fitted.denoiser.net.frozen[1].running_mean)


def test_all_is_kept_of_a_network_that_learns_as_a_whole(tmp_path):
    net = Half().requires_grad_(True)
    objective = Objective(Denoiser(net, Cosine(), V), {"denoise": Term(Denoising())})
    xhat.fit(objective, normal(16, 3), tmp_path / "run", max_steps=2, **OPTIONS)
    kept = {name.removeprefix("net.") for name in names_in(tmp_path / "run" / "ema.safetensors") if name.startswith("net.")}
    assert kept == set(net.state_dict())
