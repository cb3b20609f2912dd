"""Every term of the bound against openai's code: python benchmarks/openai_bound.py FOLDER

FOLDER is `guided_diffusion` of a clone of openai/guided-diffusion, or `improved_diffusion` of openai/improved-diffusion: their
`GaussianDiffusion._vb_terms_bpd` is called beside ours, with the same images, noise and network, in all mean and variance types
that both have. Then what differs by design: the decoder's normal distribution and its clamp, the variance of the last step, and
the clipping of x0_hat.
"""

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from usage import Parser, folder, guarded

import xhat
from xhat.bound.exact import evaluate
from xhat.bound.terms import bits_per_dim, form_of, prior_term
from xhat.data.idx import mnist
from xhat.data.images import to_float
from xhat.diffusion.variances import Variance
from xhat.errors import UsageError
from xhat.tensors import over_images

STEPS, IMAGES = 1000, 16
AT = (2, 3, 10, 100, 500, 1000)
MEANS = {"EPSILON": xhat.NOISE, "START_X": xhat.X0, "PREVIOUS_X": xhat.targets.POSTERIOR_MEAN}
VARIANCES: dict[str, Variance] = {
    "FIXED_SMALL": xhat.variances.POSTERIOR,
    "FIXED_LARGE": xhat.variances.FIXED_LARGE,
    "LEARNED_RANGE": xhat.variances.LEARNED,
    "LEARNED": xhat.variances.LEARNED,  # their network says the logarithm itself
}


class Net(nn.Module):
    """A plausible model of digits: x0_hat is the best one for N(-0.7, 0.5²) and a little more, written in any target."""

    def __init__(self, schedule: xhat.Schedule, target: xhat.Target, heads: int) -> None:
        super().__init__()
        self.schedule, self.target, self.heads = schedule, target, heads

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        alpha, sigma = over_images(self.schedule.alpha(t), z), over_images(self.schedule.sigma(t), z)
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        x0 = -0.7 + gain * (z + 0.7 * alpha) + 0.02 * torch.sin(3 * z)
        out = self.target.of(self.schedule, t, x0, (z - alpha * x0) / sigma)
        return out if self.heads == 1 else torch.cat([out, torch.tanh(2 * z)], dim=1)


def load(of: Path) -> tuple[Any, Any]:
    """Their two modules, of a package that is not installed."""
    package = types.ModuleType("openai_code")
    package.__path__ = [str(of)]
    sys.modules["openai_code"] = package
    found = []
    for name in ("nn", "losses", "gaussian_diffusion"):
        spec = importlib.util.spec_from_file_location(f"openai_code.{name}", of / f"{name}.py")
        if spec is None or spec.loader is None or not (of / f"{name}.py").is_file():
            raise UsageError(f"{of} has no {name}.py: name guided_diffusion or improved_diffusion of a clone of openai's code")
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"openai_code.{name}"] = module
        spec.loader.exec_module(module)
        found.append(module)
    return found[2], found[1]


class Pair:
    """Both codes on the same images and noise, float64 where theirs allows it."""

    def __init__(self, theirs: Any, mean: str, variance: str) -> None:
        schedule = xhat.Discrete.linear_beta(STEPS)
        target, reverse = MEANS[mean], VARIANCES[variance]
        net = Net(schedule, target, reverse.outputs)
        self.denoiser = xhat.Denoiser(net, schedule, target, variance=reverse)
        self.diffusion = theirs.GaussianDiffusion(
            betas=torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64).numpy(),
            model_mean_type=theirs.ModelMeanType[mean],
            model_var_type=theirs.ModelVarType[variance],
            loss_type=theirs.LossType.KL,
        )
        self.x0 = to_float(mnist("test").pixels[:IMAGES]).double()
        self.noise = torch.randn(self.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def ours(self, step: int) -> Tensor:
        """L_{step-1}, bits/dim, (IMAGES,)."""
        index = torch.full((IMAGES,), step)
        form = form_of(self.denoiser.schedule)
        nats = evaluate(form, self.denoiser, self.x0, self.noise, index, torch.zeros(IMAGES).double(), None)
        return bits_per_dim(nats, self.x0)

    def theirs(self, step: int, *, clip: bool = False) -> Tensor:
        """The same of `_vb_terms_bpd`, whose timesteps count from 0."""
        schedule, t = self.denoiser.schedule, torch.full((IMAGES,), step / STEPS, dtype=torch.float64)
        z = over_images(schedule.alpha(t), self.x0) * self.x0 + over_images(schedule.sigma(t), self.x0) * self.noise

        def model(x: Tensor, index: Tensor) -> Tensor:
            out: Tensor = self.denoiser.net(x, (index.double() + 1) / STEPS)
            if self.diffusion.model_var_type.name != "LEARNED":
                return out
            mean, v = out.chunk(2, dim=1)
            return torch.cat([mean, self.denoiser.variance.log_variance(schedule, x, t, t - 1 / STEPS, v)], dim=1)

        found = self.diffusion._vb_terms_bpd(model, self.x0, z, torch.full((IMAGES,), step - 1), clip_denoised=clip)
        bits: Tensor = found["output"]
        return bits


def relative(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|/|b|."""
    return float(((a - b).abs() / b.abs()).max())


def exact_cdf(x: Tensor) -> Tensor:
    """Phi(x)."""
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def with_cdf(losses: Any, cdf: Callable[[Tensor], Tensor], measure: Callable[[], Tensor]) -> Tensor:
    """Their value with another normal distribution function in the decoder."""
    own = losses.approx_standard_normal_cdf
    losses.approx_standard_normal_cdf = cdf
    try:
        return measure()
    finally:
        losses.approx_standard_normal_cdf = own


@torch.no_grad()
def main() -> None:
    parser = Parser()
    parser.add_argument("folder", type=folder, help="guided_diffusion or improved_diffusion, of a clone of openai's code")
    theirs, losses = load(parser.parse_args().folder)
    print(f"openai's _vb_terms_bpd, {STEPS} linear betas, {IMAGES} test digits, clip_denoised=False; bits/dim, ours in float64")
    print(
        f"KL: largest difference over images at steps {', '.join(map(str, AT))}, theirs being float32; L_0: the decoder's term"
    )
    print(
        f"{'mean':<12}{'variance':<15}{'KL off by':>10}{'of':>9}{'L_0 theirs':>12}{'ours':>9}{'relative':>10}{'with Phi':>10}"
    )
    for mean in MEANS:
        for variance in VARIANCES:
            pair = Pair(theirs, mean, variance)
            kl = max(float((pair.theirs(step) - pair.ours(step)).abs().max()) for step in AT)
            largest = max(float(pair.ours(step).max()) for step in AT)
            first, own = pair.theirs(1), pair.ours(1)
            phi = with_cdf(losses, exact_cdf, partial(pair.theirs, 1))
            shown = (
                f"{float(first.mean()):>12.5f}{float(own.mean()):>9.5f}{relative(first, own):>10.1e}{relative(phi, own):>10.1e}"
            )
            print(f"{mean.lower():<12}{variance.lower():<15}{kl:>10.1e}{largest:>9.2f}{shown}")
    pair = Pair(theirs, "EPSILON", "FIXED_LARGE")
    prior = bits_per_dim(prior_term(pair.denoiser.schedule, pair.x0), pair.x0)
    print(f"prior, L_T: relative difference {relative(pair.diffusion._prior_bpd(pair.x0).double(), prior):.1e}")
    print()
    print("what differs by design, and by how much")
    tanh = losses.approx_standard_normal_cdf
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    print(f"tanh instead of Phi: off by {float((tanh(x) - exact_cdf(x)).abs().max()):.1e} at most, anywhere")
    far, std = torch.tensor([[[[0.5]]]], dtype=torch.float64), torch.full((1, 1, 1, 1), math.log(0.01), dtype=torch.float64)
    level = (far * 127.5 + 127.5).round() / 127.5 - 1
    off = (level - 0.3).requires_grad_()
    with torch.enable_grad():
        clamped = losses.discretized_gaussian_log_likelihood(level, means=off, log_scales=std).sum()
        (flat,) = torch.autograd.grad(clamped, off)
        true = xhat.bound.eight_bit.DiscretizedGaussian(off, 2 * std).log_prob(level).sum()
        (slope,) = torch.autograd.grad(true, off)
    print(
        f"clamp at 1e-12: a mean 20 standard deviations off has log P {float(clamped):.1f}, slope {float(flat):.0f}; "
        f"exact {float(true):.1f}, slope {float(slope):.0f}"
    )
    beta = xhat.Denoiser(pair.denoiser.net, pair.denoiser.schedule, pair.denoiser.target, variance=xhat.variances.FORWARD)
    large, pair.denoiser = pair.ours(1), beta
    forward = pair.ours(1)
    print(
        f"last step's variance: L_0 {float(large.mean()):.5f} with beta-tilde_2 (FIXED_LARGE, theirs), "
        f"{float(forward.mean()):.5f} with beta_1 (FORWARD, diffusers'): {float(forward.mean() / large.mean() - 1):+.1%}"
    )
    pair = Pair(theirs, "EPSILON", "FIXED_SMALL")
    loose, clipped = (torch.stack([pair.theirs(step, clip=clip) for step in AT]).mean(1) for clip in (False, True))
    moved = ", ".join(f"{float(c / p - 1):+.1%} at {step}" for p, c, step in zip(loose, clipped, AT, strict=True))
    print(f"x0_hat clipped to [-1, 1], as calc_bpd_loop does by default and we never: KL of this network {moved}")


if __name__ == "__main__":
    guarded(main)
