"""How a run is trained, whatever it trains: options that a command line, a YAML file and `xhat.fit` share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from xhat.config.ranges import COUNT, FINITE, require_in_range, within

BUDGETS = ("max_steps", "max_images", "max_minutes")
ON_THE_WAY = ("checkpoint_every", "sample_every", "log_every", "eval_every", "watch", "track")
"""When what is written."""
MAY_CHANGE = (*BUDGETS, *ON_THE_WAY, "workers", "shard", "accumulate", "optimizer.lr", "optimizer.muon_lr")
"""Options that a resumed run may have otherwise: how long, what is written on the way, in how many parts a batch is computed,
and how fast it learns, for a training that diverges."""


def is_among(key: str, keys: Sequence[str]) -> bool:
    """Whether a dotted key, or a section that it is in, is one of these."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


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

    lr: float = within(2e-3, 0)
    muon_lr: float = within(0.0, 0)
    betas: tuple[float, float] = within((0.9, 0.99), 0, 0.9999999)
    weight_decay: float = within(0.01, 0)
    warmup_steps: int = within(100, 0, COUNT)
    grad_clip: float = within(1.0, 1e-30)


@dataclass
class SamplingConfig:
    """How samples are drawn when nothing else is said.

    Args:
        sampler: ddim, ddim(eta=1), ddpm, euler, heun, dpm2m or leapfrog.
        steps: sampling steps.
        guidance: classifier-free guidance scale of class-conditional models; 1 is none.
        spacing: of the times; uniform or karras.
    """

    sampler: str = "ddim"
    steps: int = within(50, 1, 1_000_000)
    guidance: float = within(1.0, -FINITE)
    spacing: str = "uniform"


@dataclass
class Options:
    """How a run is trained.

    Args:
        batch_size: samples per step, over all processes and micro-batches.
        accumulate: micro-batches per step.
        max_steps: stop after so many steps.
        max_images: stop after so many images.
        max_minutes: stop after so many minutes, compilation included.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between pictures of samples; the first comes after a fifth of them.
        log_every: steps between lines of metrics.jsonl.
        eval_every: steps between measurements on held-out images, 0 for none; by default they take about 2 % of the time.
        watch: penalties of samples that are measured at the first line of metrics.jsonl, with each picture and at the end, name
            -> expression: what a reward that is trained on does to others, which are not.
        workers: processes that read data ahead of the training; by default none for what is in memory or mapped, else one less
            than the cores, at most 4.
        shard: split weights, gradients, averages and optimizers over the processes (FSDP2), instead of having all of
            them on each; true gathers the weights for a step, blocks one block after another, for what fits on no device whole.
        precision: of the network's body; auto is bf16 where the machine is fast at it.
        compile: torch.compile the network; auto does so if the budget repays it.
        ema: relative width of the power-function average of the weights (EDM2); 0 keeps the last weights.
        averages_every: steps after which averages of two more widths are kept, of which xhat average makes one of any width
            once a run is trained; 0 keeps none.
        track: log the numbers of metrics.jsonl and the pictures there, too.
        optimizer: see OptimizerConfig.
        sampling: see SamplingConfig.
    """

    batch_size: int = within(128, 1, COUNT)
    accumulate: int = within(1, 1, COUNT)
    max_steps: int | None = within(None, 1, COUNT)
    max_images: int | None = within(None, 1, COUNT)
    max_minutes: float | None = within(None, 1e-6)
    checkpoint_every: int = within(500, 1, COUNT)
    sample_every: int = within(500, 1, COUNT)
    log_every: int = within(20, 1, COUNT)
    eval_every: int | None = within(None, 0, COUNT)
    watch: dict[str, str] = field(default_factory=dict)
    workers: int | None = within(None, 0, 1024)
    shard: Literal["blocks"] | bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    ema: float = within(0.1, 0, 0.28)
    averages_every: int = within(0, 0, COUNT)
    track: Literal["tensorboard", "wandb", "mlflow"] | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        require_in_range(self)
