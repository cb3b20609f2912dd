"""Memory that training a pipeline takes, by formula, beside a measured tiny one: python benchmarks/pipeline_memory.py

Parameters are counted on the meta device, from the published configs; nothing is loaded.
"""

from typing import Any

import diffusers
import torch
from torch import nn

from xhat import Denoising, Objective, Term, from_diffusers
from xhat.config.options import OptimizerConfig
from xhat.pipelines.families import family_of
from xhat.pipelines.lora import add_lora
from xhat.runs.given import Given
from xhat.training.ema import PowerAverage
from xhat.training.optimizers import build_optimizers

GIB, RANK = 2**30, 16
HELD = {"weights": 4, "gradient": 4, "Adam's two moments": 8, "average": 4}
"""Bytes for each parameter that learns."""


def sd15() -> Any:
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def sdxl() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    )


def flux() -> Any:
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


MODELS = {"SD 1.5": sd15, "SDXL": sdxl, "SD 3 medium": sd3, "FLUX.1 dev": flux}


def parameters(model: nn.Module) -> tuple[int, int]:
    """All, and those that learn."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)


def row(name: str, make: Any) -> str:
    with torch.device("meta"):
        model = make()
        whole, _ = parameters(model)
        added = add_lora(model, RANK, family_of(model).adapted)
    _, learned = parameters(added)
    held = sum(HELD.values())
    checkpoint = (held - HELD["gradient"]) * learned  # a gradient is not kept
    cells = [f"{whole / 1e9:.2f}", f"{learned / 1e6:.1f}", f"{2 * whole / GIB:.1f}", f"{held * learned / GIB:.2f}"]
    cells += [
        f"{(2 * whole + held * learned) / GIB:.1f}",
        f"{held * whole / GIB:.0f}",
        f"{100 * checkpoint / (4 * whole):.1f} %",
    ]
    return f"{name:<12}" + "".join(f"{cell:>12}" for cell in cells)


def measured() -> tuple[int, int]:
    """Bytes that one step of a tiny LoRA leaves in memory, by the formula and counted."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 8}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    model = add_lora(diffusers.UNet2DConditionModel(sample_size=8, **sizes, **blocks), RANK, family_of_unet().adapted)
    denoiser = from_diffusers(model, diffusers.DDIMScheduler(clip_sample=False))
    objective, average = Objective(denoiser, {"denoise": Term(Denoising())}), PowerAverage(denoiser, 0.1)
    [optimizer] = build_optimizers(objective, OptimizerConfig())
    objective(torch.randn(2, 4, 8, 8), cond={"encoder_hidden_states": torch.randn(2, 5, 32)})["loss"].backward()
    optimizer.step()
    average.update_parameters(denoiser)
    tensors = [*model.parameters(), *average.module.parameters()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x) and x.numel() > 1]
    counted = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    whole, learned = parameters(model)
    assert not set(Given.of(denoiser.net).sums) & {name for name, p in denoiser.net.named_parameters() if p.requires_grad}
    return 4 * (whole - learned) + sum(HELD.values()) * learned, sum(counted.values())


def family_of_unet() -> Any:
    with torch.device("meta"):
        return family_of(sd15())


def main() -> None:
    names = ("parameters", "of LoRA", "weights", "LoRA's", "together", "all of it", "checkpoint")
    units = ("10⁹", f"10⁶, r {RANK}", "GiB, bf16", "GiB", "GiB", "GiB", "of model")
    print(" " * 12 + "".join(f"{name:>12}" for name in names))
    print(" " * 12 + "".join(f"{unit:>12}" for unit in units))
    for name, make in MODELS.items():
        print(row(name, make))
    formula, counted = measured()
    print(f"\na tiny UNet with a LoRA, float32, after one step: {formula:,} bytes by the formula, {counted:,} counted")


if __name__ == "__main__":
    main()
