"""The configuration of a run: plain values and expressions, and the objects they stand for."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from xhat.errors import ConfigError


@dataclass
class TermConfig:
    """One term of the objective.

    Args:
        loss: for example denoising(space=x0, weighting=min_snr(5)) or image_loss(total_variation).
        weight: factor in the sum; or dual_ascent(limit), gradient_ratio(0.1), conflict_free(1.0).
        when: always, every(n), randomly(p), after(n), reweighted(every(n)), both(after(n), every(m)).
    """

    loss: str = ""
    weight: float | str = 1.0
    when: str = "always"


@dataclass
class OptimizerConfig:
    """AdamW and Muon, with linear warm-up and a cosine decay to zero over the budget.

    Args:
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon, for the hidden matrices of networks that name them; 0 is AdamW for all.
        betas: decay rates of the first and the second moment.
        weight_decay: decoupled weight decay.
        warmup_steps: steps of linear warm-up.
        grad_clip: largest norm of the gradient.
    """

    lr: float = 2e-3
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    grad_clip: float = 1.0


@dataclass
class SamplingConfig:
    """How samples are drawn when nothing else is said.

    Args:
        sampler: ddim, ddim(eta=1), ddpm, euler, heun or dpm2m.
        steps: sampling steps.
        guidance: classifier-free guidance scale of class-conditional models; 1 is none.
        spacing: of the times; uniform or karras.
    """

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 1.0
    spacing: str = "uniform"


@dataclass
class Config:
    """A training run.

    Args:
        init: weights to start from; a run, its ema.safetensors, or a diffusers checkpoint.
        data: mnist, a folder of images, an IDX file (.gz or not), .npz or .npy.
        image_size: side of the square images; by default that of the data (a folder: its smallest side, at most 64, where a few
            tiny images do not count).
        labels: condition the network on the class labels of the data; auto does so if they have any.
        label_dropout: share of samples trained without their label, for guidance.
        held_out: share of the images that is set aside to measure on, at most 1,000; MNIST has a test set of its own.
        network: unet(...), dit(...) or level_posterior(...); channels, size and classes come from the data.
        schedule: cosine, linear_logsnr, flow, ve, learned, linear_beta, cosine_beta, or zero_terminal(one of them).
        target: what the network predicts; x0, noise, v, scaled_noise, step_noise, posterior_mean, score, flow, edm(0.5).
        variance: of the reverse step; posterior, forward, fixed_large or learned.
        time_input: what the network sees of the time; its own choice (network), t or log_sigma.
        times: where samples go; stratified, uniform, logit_normal(0, 1), log_normal_sigma(-1.2, 1.2), loss_second_moment,
            adaptive, one_level, sequential.
        terms: the objective, name -> {loss, weight, when}.
        input_perturbation: gamma of Ning et al. 2023; 0 is off.
        seed: of initial weights, data order, times and noise.
        batch_size: images per step, over all processes and micro-batches.
        accumulate: micro-batches per step.
        max_steps: stop after so many steps.
        max_images: stop after so many images.
        max_minutes: stop after so many minutes, compilation included.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between pictures of samples.
        log_every: steps between lines of metrics.jsonl.
        eval_every: steps between measurements on held-out images, 0 for none; by default they take about 2 % of the time.
        precision: of the network's body; auto is bf16 where the machine is fast at it.
        compile: torch.compile the network; auto does so if the budget repays it.
        ema: relative width of the power-function average of the weights (EDM2); 0 keeps the last weights.
        optimizer: see OptimizerConfig.
        sampling: see SamplingConfig.
    """

    init: str | None = None
    data: str = "mnist"
    image_size: int | None = None
    labels: Literal["auto"] | bool = False
    label_dropout: float = 0.1
    held_out: float = 0.05
    network: str = "unet"
    schedule: str = "cosine"
    target: str = "v"
    variance: str = "posterior"
    time_input: str = "network"
    times: str = "stratified"
    terms: dict[str, TermConfig] = field(default_factory=lambda: {"denoise": TermConfig("denoising(space=v)")})
    input_perturbation: float = 0.0
    seed: int = 0
    batch_size: int = 128
    accumulate: int = 1
    max_steps: int | None = None
    max_images: int | None = None
    max_minutes: float | None = None
    checkpoint_every: int = 500
    sample_every: int = 500
    log_every: int = 20
    eval_every: int | None = None
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    ema: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        for key, value, low, high in self._ranges():
            if value is not None and not low <= value <= high:
                bounds = f"at least {low:g}" if math.isinf(high) or high > 1e9 else f"in [{low:g}, {high:g}]"
                raise ConfigError(f"{key} must be {bounds}, got {value}")

    def _ranges(self) -> list[tuple[str, float | None, float, float]]:
        """Key, value, lowest and highest; NaN is in no range."""
        counts = ("batch_size", "accumulate", "checkpoint_every", "sample_every", "log_every", "max_steps", "max_images")
        o, most = self.optimizer, sys.float_info.max
        return [
            *((key, getattr(self, key), 1, 2**53) for key in counts),
            ("image_size", self.image_size, 4, 4096),
            ("max_minutes", self.max_minutes, 1e-6, most),
            ("seed", self.seed, 0, 2**62),
            ("label_dropout", self.label_dropout, 0, 1),
            ("held_out", self.held_out, 0, 0.5),
            ("eval_every", self.eval_every, 0, 2**53),
            ("input_perturbation", self.input_perturbation, 0, most),
            ("ema", self.ema, 0, 0.28),
            ("optimizer.lr", o.lr, 0, most),
            ("optimizer.muon_lr", o.muon_lr, 0, most),
            ("optimizer.betas", min(o.betas), 0, 0.9999999),
            ("optimizer.betas", max(o.betas), 0, 0.9999999),
            ("optimizer.weight_decay", o.weight_decay, 0, most),
            ("optimizer.warmup_steps", o.warmup_steps, 0, 2**53),
            ("optimizer.grad_clip", o.grad_clip, 1e-30, most),
            ("sampling.steps", self.sampling.steps, 1, 2**31),
            ("sampling.guidance", self.sampling.guidance, -most, most),
            *((f"terms.{k}.weight", v.weight, -most, most) for k, v in self.terms.items() if not isinstance(v.weight, str)),
        ]


def config_from_dict(values: dict[str, Any]) -> Config:
    """The config that `dataclasses.asdict` took apart; JSON's lists become tuples again."""
    values = {"held_out": 0.0, **values}  # a run of before there was the key was trained on all images
    optimizer, sampling = dict(values.pop("optimizer")), values.pop("sampling")
    optimizer["betas"] = tuple(optimizer["betas"])
    terms = {name: TermConfig(**term) for name, term in values.pop("terms").items()}
    return Config(**values, terms=terms, optimizer=OptimizerConfig(**optimizer), sampling=SamplingConfig(**sampling))
