"""The configuration of a run: plain values and expressions, and the objects they stand for."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xhat.budgets import LEAST_SIDE, MOST_SIDE
from xhat.config.options import Options
from xhat.config.ranges import FINITE, within
from xhat.errors import DamagedError
from xhat.files.values import of_type


@dataclass
class TermConfig:
    """One term of the objective.

    Args:
        loss: for example denoising(space=x0, weighting=min_snr(5)) or image_loss(total_variation).
        weight: factor in the sum; or dual_ascent(limit), gradient_ratio(0.1), conflict_free(1.0).
        when: always, every(n), randomly(p), after(n), reweighted(every(n)), both(after(n), every(m)).
    """

    loss: str = ""
    weight: float | str = within(1.0, -FINITE)
    when: str = "always"


@dataclass
class Model:
    """What a run trains, and on what.

    Args:
        init: weights to start from; a run, its ema.safetensors, or the folder of a diffusers pipeline.
        lora: rank of an adapter, which alone learns; for pipelines.
        data: mnist, a folder of images, an IDX file (.gz or not), .npz or .npy; or a data source of --use. For pipelines a
            folder of images with captions (metadata.jsonl, a .txt beside each, or sub-folders), or a .txt of prompts alone.
        image_size: side of the square images, or width and height, such as 64x96; of a pipeline's pictures with captions
            several, such as 512, 640x384, 384x640: each picture is of the nearest shape, each step of one size; by
            default the side of the data (of a folder the smallest, at most 64, where a few tiny images do not count).
        skip_corrupt: leave out files of a folder that cannot be read, which are named and counted, instead of refusing them.
        augment: what training sees samples through, one after the other, such as flip, shift(2), crop(0.8); held-out ones are
            measured as they are.
        labels: condition the network on the class labels of the data; auto does so if they have any.
        label_dropout: share of samples trained without their label, for guidance.
        held_out: share of the images that is set aside to measure on, at most 1,000; MNIST has a test set of its own.
        network: unet(...), dit(...) or level_posterior(...); channels, size and classes come from the data.
        schedule: cosine, linear_logsnr, flow, ve, learned, linear_beta, cosine_beta, or zero_terminal(one of them).
        target: what the network predicts; x0, noise, v, scaled_noise, step_noise, posterior_mean, score, flow, edm(0.5).
        variance: of the reverse step; posterior, forward, fixed_large or learned.
        time_input: what the network sees of the time; its own choice (network), t or log_sigma.
        times: timestep sampling distribution; stratified, uniform, logit_normal(0, 1), log_normal_sigma(-1.2, 1.2),
            loss_second_moment, adaptive, one_level, sequential.
        terms: the objective, name -> {loss, weight, when}.
        input_perturbation: gamma of Ning et al. 2023; 0 is off.
        pairing: which noise an image is trained with, of those drawn for the batch; immiscible(64), or nothing: its own.
        seed: of initial weights, data order, times and noise.
    """

    init: str | None = None
    lora: int | None = within(None, 1, 65536)
    data: str = "mnist"
    image_size: int | str | None = within(None, LEAST_SIDE, MOST_SIDE)
    skip_corrupt: bool = False
    augment: str = ""
    labels: Literal["auto"] | bool = False
    label_dropout: float = within(0.1, 0, 1)
    held_out: float = within(0.05, 0, 0.5)
    network: str = "unet"
    schedule: str = "cosine"
    target: str = "v"
    variance: str = "posterior"
    time_input: str = "network"
    times: str = "stratified"
    terms: dict[str, TermConfig] = field(default_factory=lambda: {"denoise": TermConfig("denoising(space=v)")})
    input_perturbation: float = within(0.0, 0)
    pairing: str | None = None
    seed: int = within(0, 0, 2**62)


@dataclass
class Config(Options, Model):
    """A training run: what it trains, on what, and how."""


LATER_KEYS: dict[str, Any] = {
    "held_out": 0.0,
    "track": None,
    "lora": None,
    "skip_corrupt": False,
    "augment": "",
    "workers": None,
    "shard": False,
    "watch": {},
    "pairing": None,
    "averages_every": 0,
}
"""Keys that configs of earlier versions do not have, and what they mean there: those runs were trained on all images."""


def to_values(config: Config) -> dict[str, Any]:
    """The config as YAML and JSON hold it: mappings, lists and plain values."""
    values: dict[str, Any] = _with_sequences(asdict(config), list)
    return values


def from_values(values: dict[str, Any]) -> Config:
    """The config that `to_values` took apart; every key must be there, but for those that an older version did not have.

    Raises:
        DamagedError: a key is missing or unknown, or a value of another type or out of range.
    """
    whole = {**LATER_KEYS, **values}
    config: Config = of_type(whole, Config)
    if to_values(config) != _with_sequences(whole, list):
        raise DamagedError("it names keys that there are not, or leaves some out")
    return config


def _with_sequences(value: Any, kind: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
    """The value, and all in it, with every list and tuple of one kind: configs hold tuples, JSON and YAML lists."""
    if isinstance(value, dict):
        return {key: _with_sequences(inner, kind) for key, inner in value.items()}
    return kind(_with_sequences(inner, kind) for inner in value) if isinstance(value, list | tuple) else value
