"""The losses that benchmarks/peers.py measures: each as its library's documentation trains with it, on the same network.

All are of one batch x0 (B, 1, 28, 28) in [-1, 1] and of a network called as net(z, t). What stands between a library and the
network is what the library's own convention asks for, and no more.
"""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xhat import X0, Cosine, Denoiser, Denoising, ImageLoss, Objective, Term, V, min_snr
from xhat.diffusion.schedules import Discrete
from xhat.diffusion.times import Uniform
from xhat.losses.penalties import total_variation

PLAIN, MIN_SNR, PENALTY = "plain", "min-snr", "one-step penalty"
PEERS = ("diffusers", "denoising-diffusion-pytorch", "k-diffusion", "azula", "torchcfm", "flow_matching")
WEIGHT = 0.05
"""Of the total variation of the predicted clean image."""

Loss = Callable[[], Tensor]
"""Draws what it needs and returns the loss of its batch."""


class Called(nn.Module):
    """A network under the calling convention of a library that keeps it as a module.

    Args:
        net: called as net(z, t).
        how: (net, what the library gives its networks) -> what it expects of them.
        attributes: what the library reads of its networks.
    """

    def __init__(self, net: nn.Module, how: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.net, self.how = net, how
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *arguments: Any) -> Any:
        return self.how(self.net, *arguments)


def bare(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """The network's own step, which all others are compared with, and one that draws its noise, as every training must."""
    z, y, t = torch.randn_like(x0), torch.randn_like(x0), torch.rand(len(x0))

    def alone() -> Tensor:
        return F.mse_loss(net(z, t), y)

    def drawing() -> Tensor:
        noise, angle = torch.randn_like(x0), (torch.pi / 2 * torch.rand(len(x0))).reshape(-1, 1, 1, 1)
        alpha, sigma = angle.cos(), angle.sin()
        return F.mse_loss(net(alpha * x0 + sigma * noise, t), alpha * noise - sigma * x0)

    return {"alone": alone, "drawing its noise": drawing}


def ours(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """`Objective`, told its steps, as in a loop of one's own; min-snr is the preset's."""
    v, smooth = Term(Denoising(V)), Term(ImageLoss(total_variation), weight=WEIGHT)
    hang = Term(Denoising(X0, min_snr(5)))

    def loss(objective: Objective) -> Loss:
        steps = itertools.count(1)
        return lambda: objective(x0, step=next(steps))["loss"]

    return {
        PLAIN: loss(Objective(Denoiser(net, Cosine(), V), {"denoise": v})),
        MIN_SNR: loss(Objective(Denoiser(net, Discrete.cosine_beta(), X0), {"denoise": hang}, Uniform())),
        PENALTY: loss(Objective(Denoiser(net, Cosine(), V), {"denoise": v, "smooth": smooth})),
    }


def diffusers(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """The steps of its train_unconditional.py; min-snr as in its train_text_to_image.py; the penalty as one adds it there."""
    from diffusers import DDPMScheduler
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")

    def model(sample: Tensor, timestep: Tensor) -> Any:
        return UNet2DOutput(sample=net(sample, timestep / 1000))

    def step() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),), device=x0.device).long()
        noisy = scheduler.add_noise(x0, noise, timesteps)
        return noise, timesteps, noisy, model(noisy, timesteps).sample

    def plain() -> Tensor:
        noise, _, _, out = step()
        return F.mse_loss(out.float(), noise.float())

    def weighted() -> Tensor:
        noise, timesteps, _, out = step()
        snr = compute_snr(scheduler, timesteps)
        weights: Tensor = torch.stack([snr, 5.0 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
        each = F.mse_loss(out.float(), noise.float(), reduction="none").mean(dim=[1, 2, 3])
        return (each * weights).mean()

    def penalty() -> Tensor:
        noise, timesteps, noisy, out = step()
        alpha_bar = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        image = (noisy - (1 - alpha_bar).sqrt() * out) / alpha_bar.sqrt()
        return F.mse_loss(out.float(), noise.float()) + WEIGHT * total_variation(image).mean()

    return {PLAIN: plain, MIN_SNR: weighted, PENALTY: penalty}


def denoising_diffusion_pytorch(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """`GaussianDiffusion` of its README, which takes images in [0, 1] and predicts v."""
    from denoising_diffusion_pytorch import GaussianDiffusion  # type: ignore[import-not-found]

    images, seen = (x0 + 1) / 2, SimpleNamespace()

    def how(net: nn.Module, x: Tensor, time: Tensor, x_self_cond: None) -> Any:
        # its loss returns nothing but the loss: who wants the predicted image keeps what went in and came out
        seen.x, seen.time, seen.out = x, time, net(x, time / 1000)
        return seen.out

    def diffusion(**options: Any) -> Any:
        model = Called(net, how, channels=1, out_dim=1, self_condition=False)
        return GaussianDiffusion(model, image_size=28, timesteps=1000, **options)

    simple, weighted = diffusion(), diffusion(min_snr_loss_weight=True)

    def penalty() -> Tensor:
        loss: Tensor = simple(images)
        return loss + WEIGHT * total_variation(simple.predict_start_from_v(seen.x, seen.time, seen.out)).mean()

    return {PLAIN: lambda: simple(images), MIN_SNR: lambda: weighted(images), PENALTY: penalty}


def k_diffusion(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """The steps of its train.py with its config_mnist.json, but for augmented data; its networks take log(sigma)/4."""
    import k_diffusion as K  # type: ignore[import-not-found]

    density = {"type": "cosine-interpolated"}
    values = {"sigma_data": 0.6162, "sigma_min": 1e-2, "sigma_max": 80, "sigma_sample_density": density}
    model = {"type": "image_v1", "input_size": [28, 28], "loss_weighting": "soft-min-snr", **values}
    config = K.config.load_config({"model": model})
    sample_density = K.config.make_sample_density(config["model"])
    denoiser = K.config.make_denoiser_wrapper(config)(Called(net, lambda net, x, sigma: net(x, sigma.log() / 4)))

    def plain() -> Tensor:
        noise = torch.randn_like(x0)
        with K.utils.enable_stratified():
            sigma = sample_density([len(x0)], device=x0.device)
        losses: Tensor = denoiser.loss(x0, noise, sigma)
        return losses.mean()

    return {PLAIN: plain}


def azula(net: nn.Module, x0: Tensor) -> dict[str, Loss]:
    """`KarrasDenoiser.loss` of its README, whose networks take (x, log(sigma/alpha)), as ours take (z, t)."""
    from azula.denoise import KarrasDenoiser  # type: ignore[import-not-found]
    from azula.noise import VPSchedule  # type: ignore[import-not-found]

    denoiser = KarrasDenoiser(backbone=net, schedule=VPSchedule())
    return {PLAIN: lambda: denoiser.loss(x0, torch.rand((len(x0),)))}


def torchcfm(net: nn.Module, x1: Tensor) -> dict[str, Loss]:
    """The steps of its MNIST example, whose networks take (t, x), without the optimal transport plan of a batch."""
    from torchcfm import ConditionalFlowMatcher  # type: ignore[import-not-found]

    matcher = ConditionalFlowMatcher(sigma=0.0)

    def plain() -> Tensor:
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return torch.mean((net(xt, t) - ut) ** 2)

    return {PLAIN: plain}


def flow_matching(net: nn.Module, x1: Tensor) -> dict[str, Loss]:
    """The steps of its example 2d_flow_matching, whose networks take (x, t) as ours do."""
    from flow_matching.path import AffineProbPath  # type: ignore[import-not-found]
    from flow_matching.path.scheduler import CondOTScheduler  # type: ignore[import-not-found]

    path = AffineProbPath(scheduler=CondOTScheduler())

    def plain() -> Tensor:
        x0, t = torch.randn_like(x1), torch.rand(len(x1))
        sample = path.sample(t=t, x_0=x0, x_1=x1)
        return torch.pow(net(sample.x_t, sample.t) - sample.dx_t, 2).mean()

    return {PLAIN: plain}


def contestants(net: nn.Module, x0: Tensor) -> dict[tuple[str, str], Loss]:
    """All losses by (variant, library), the bare step first; what a library does not have is left out, not imitated."""
    libraries = (ours, diffusers, denoising_diffusion_pytorch, k_diffusion, azula, torchcfm, flow_matching)
    found = {("bare step", name): loss for name, loss in bare(net, x0).items()}
    losses = {name: of(net, x0) for name, of in zip(("xhat", *PEERS), libraries, strict=True)}
    for variant in (PLAIN, MIN_SNR, PENALTY):
        found |= {(variant, name): its[variant] for name, its in losses.items() if variant in its}
    return found
