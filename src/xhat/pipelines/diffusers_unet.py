"""Parts that a config can name: diffusers' UNet2DModel as a network of ours, and its schedulers' tables, from their configs.

Checkpoints on disk are read by `diffusers_folder.py`. diffusers is imported when it is asked for: `pip install diffusers`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from xhat.diffusion.schedules import Discrete
from xhat.diffusion.targets import Target
from xhat.diffusion.time_inputs import diffusers_index
from xhat.errors import RunError
from xhat.networks.layers import float32_edge
from xhat.pipelines.schedulers import TARGETS, build, build_scheduler, import_diffusers, known, parse
from xhat.registry import NETWORKS, SCHEDULES


class Float32Conv(nn.Conv2d):
    """A convolution that stays float32 under autocast; in bf16 a noise level of 0.001 would be rounded away."""

    @classmethod
    def holding(cls, conv: nn.Conv2d) -> "Float32Conv":
        """The same convolution, with the same parameters."""
        made = cls(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)  # type: ignore[arg-type]
        made.weight, made.bias = conv.weight, conv.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        with float32_edge(x.device):
            return super().forward(x.to(self.weight.dtype))


class DiffusersUNet(nn.Module):
    """A diffusers UNet2DModel, called as net(z (B, C, H, W), timestep (B,), label (B,) or None) -> (B, C or 2C, H, W).

    The timestep is diffusers' own 0-based one, which a Denoiser passes by itself (`time_input`). As in all networks here,
    label `classes` is the null class, and no label is the null class too. A checkpoint does not say whether it was trained
    with one. It is taken to have none: each of its M embeddings is a class, and one more is added, at first their mean, so
    that training can drop labels; until it did, guidance means nothing. With `classes` = M - 1 the last one is the null class.

    Args:
        unet: the UNet2DModel; taken over: it gets float32 edges and, if it needs one, the null class.
        target: what it was trained to predict; a Denoiser refuses any other. None leaves it open.
        classes: number of class labels of the data, M or M - 1; None is M.

    Raises:
        ValueError: the network takes other inputs than images, steps and labels, or has another number of classes.
    """

    def __init__(self, unet: Any, target: Target | None = None, classes: int | None = None) -> None:
        super().__init__()
        config = unet.config
        self.channels, self.outputs, self.size = config.in_channels, config.out_channels, _side(config.sample_size)
        if self.outputs not in (self.channels, 2 * self.channels):
            raise ValueError(f"this UNet2DModel maps {self.channels} to {self.outputs} channels: xhat needs C to C, or to 2C")
        if config.time_embedding_type == "fourier":
            raise ValueError("this UNet2DModel was trained on noise levels (time_embedding_type fourier), not on steps")
        if config.class_embed_type is not None:
            raise ValueError(f"this UNet2DModel takes class_embed_type {config.class_embed_type}: xhat gives it labels only")
        self.classes = _add_null_class(unet, classes)
        unet.conv_in, unet.conv_out = Float32Conv.holding(unet.conv_in), Float32Conv.holding(unet.conv_out)
        self.unet, self.time_input = unet, diffusers_index
        if target is not None:
            self.target = target

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        if self.classes is None and label is not None:
            raise ValueError("this network has no classes: leave label out")
        if self.classes is not None and label is None:
            label = torch.full(timestep.shape, self.classes, device=z.device)
        out: Tensor = self.unet(z, timestep.long(), class_labels=label).sample
        return out


@NETWORKS.register
def diffusers_unet(
    config_json: str,
    prediction_type: str | None = None,
    channels: int | None = None,
    size: int | None = None,
    classes: int | None = None,
) -> DiffusersUNet:
    """A UNet2DModel with random weights, from the text of its config.json.

    Args:
        config_json: the text.
        prediction_type: epsilon, v_prediction or sample, what its weights were trained for; None leaves it open.
        channels: of the data; only checked.
        size: side of the data's images; only checked for divisibility.
        classes: of the data; see `DiffusersUNet`.

    Raises:
        ValueError: no such config, or it does not fit the data.
    """
    config = parse(config_json, "config_json")
    target = None if prediction_type is None else known("prediction_type", prediction_type, TARGETS)
    net = DiffusersUNet(build(import_diffusers().UNet2DModel, config), target, classes)
    unit = 2 ** (len(net.unet.config.block_out_channels) - 1)
    if channels is not None and channels != net.channels:
        raise RunError(f"this UNet2DModel takes images of {net.channels} channels, the data have {channels}")
    if size is not None and size % unit:
        raise RunError(f"this UNet2DModel needs images whose side is a multiple of {unit}, not {size}: set image_size")
    return net


@SCHEDULES.register
def diffusers_schedule(config_json: str) -> Discrete:
    """The table of a diffusers scheduler, from the text of its scheduler_config.json.

    Raises:
        ValueError: no such scheduler, or it has no table of T steps.
    """
    return Discrete.from_diffusers(build_scheduler(parse(config_json, "config_json")))


def _add_null_class(unet: Any, classes: int | None) -> int | None:
    """The number of classes beside the null class, for which a row is added unless the network has one."""
    own = unet.config.num_class_embeds
    if classes is not None and (own is None or classes not in (own, own - 1)):
        has = "no class labels" if own is None else f"{own} class embeddings"
        raise ValueError(f"this UNet2DModel has {has}, the data have {classes} classes")
    if own is None or classes == own - 1:
        return classes
    table = unet.class_embedding.weight
    unet.class_embedding = nn.Embedding.from_pretrained(torch.cat([table, table.mean(0, keepdim=True)]).detach(), freeze=False)
    unet.register_to_config(num_class_embeds=own + 1)  # so that save_pretrained writes what it has
    return int(own)


def _side(sample_size: Any) -> int | None:
    """The side of square images; None where the checkpoint does not say."""
    sides = {sample_size} if isinstance(sample_size, int) else set(sample_size or ())
    return sides.pop() if len(sides) == 1 else None
