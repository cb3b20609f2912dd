"""Out again: in a process without xhat diffusers draws the same images from the same noise; the rest is refused by name."""

import json
import subprocess
import sys

import diffusers
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_commands_of_pipelines import SMALL, write_pictures

import xhat
from helpers import xhat as run_command
from xhat import NOISE, X0, Cosine, Denoiser, Discrete, Guided, V, load, sample
from xhat.errors import RunError
from xhat.exports.diffusers import scheduler_of, write_diffusers
from xhat.pipelines.diffusers_unet import DiffusersUNet
from xhat.sampling.spacings import scheduler_times, uniform_times

PROMPTS, STEPS, SCALE = ["a red cloth", "a blue cloth"], 4, 5.0

OF_PIPELINE = """
import sys, torch, diffusers
from safetensors.torch import load_file, save_file
base, lora, noise, out = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
if lora != "-":
    pipeline.load_lora_weights(lora)
z = load_file(noise)["z"]
own = {{"height": 16, "width": 16, "num_inference_steps": {steps}, "guidance_scale": {scale}, "output_type": "latent"}}
save_file({{"z": pipeline({prompts!r}, latents=z, **own).images}}, out)
assert not any(name.partition(".")[0] == "xhat" for name in sys.modules)
"""

OF_UNET = """
import sys, torch, diffusers
from safetensors.torch import load_file, save_file
folder, noise, out = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
scheduler.set_timesteps({steps})
z = load_file(noise)["z"]
with torch.no_grad():
    for t in scheduler.timesteps:
        z = scheduler.step(pipeline.unet(z, t).sample, t, z).prev_sample
save_file({{"z": z}}, out)
assert not any(name.partition(".")[0] == "xhat" for name in sys.modules)
"""


def elsewhere(program, *arguments):
    """What a process of its own, without xhat, draws."""
    *given, out = map(str, arguments)
    text = program.format(steps=STEPS, scale=SCALE, prompts=PROMPTS)
    done = subprocess.run([sys.executable, "-c", text, *given, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out)["z"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XHAT_CACHE", str(root / "cache"))
        tiny.stable_diffusion().save_pretrained(root / "sd")
        write_pictures(root / "pics", 8)
        save_file({"z": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}, root / "noise.safetensors")
        yield root


@pytest.mark.parametrize("lora", [2, None], ids=["lora", "whole"])
def test_a_pipeline_goes_out(lora, place, capsys):
    run, out = place / f"run-{lora}", place / f"out-{lora}"
    own = ("--lora", lora) if lora else ()
    own += ("--init", place / "sd", "--data", place / "pics", "--optimizer.lr", 0.01, "--optimizer.warmup_steps", 1)
    assert run_command("train", *own, "--run", run, "--max_steps", 3, *SMALL)[0] == 0
    code, said, _ = run_command("export", run, "--to", "diffusers", out, capsys=capsys)
    assert code == 0
    assert ("a LoRA in" if lora else "a pipeline in") in said
    arguments = (place / "sd", out) if lora else (out, "-")
    theirs = elsewhere(OF_PIPELINE, *arguments, place / "noise.safetensors", place / "drawn.safetensors")
    trained = load(run)
    home = trained.denoiser.net.home[0]
    scheduler = diffusers.DDIMScheduler.from_config(home.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    z, times = load_file(place / "noise.safetensors")["z"], scheduler_times(trained.denoiser.schedule, scheduler)
    with torch.no_grad():
        guided = Guided(trained.denoiser, SCALE)
        ours = sample(guided, xhat.DDIM(), z, times, cond=home.told(PROMPTS, pixels=(16, 16)))
        base = xhat.pretrained(place / "sd").denoiser
        plain = sample(Guided(base, SCALE), xhat.DDIM(), z, times, cond=home.told(PROMPTS, pixels=(16, 16)))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "diffusers"
    assert head["base_model"] == "sd"
    assert all(word in card for word in ("pics", "Denoising()", "denoise, training", "3, of 4 samples"))
    assert str(place) not in card
    assert run_command("export", run, "--to", "diffusers", out)[0] == 2


@pytest.mark.parametrize("target", [NOISE, V, X0], ids=lambda t: t.name)
def test_a_unet_goes_out_with_a_scheduler_of_its_own(target, tmp_path):
    """Its table, target and variance, whatever they are."""
    torch.manual_seed(0)
    own = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(sample_size=8, **own, **blocks)
    denoiser = Denoiser(DiffusersUNet(unet.eval()), Discrete.cosine_beta(200), target)
    assert write_diffusers(denoiser, tmp_path / "out") == "a pipeline"
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"z": z}, tmp_path / "noise.safetensors")
    theirs = elsewhere(OF_UNET, tmp_path / "out", tmp_path / "noise.safetensors", tmp_path / "drawn.safetensors")
    with torch.no_grad():
        ours = sample(denoiser, xhat.DDIM(), z, uniform_times(denoiser.schedule, STEPS))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    back = xhat.load_diffusers(tmp_path / "out")
    assert back.target == target
    torch.testing.assert_close(back.schedule.alpha_bar, denoiser.schedule.alpha_bar, rtol=1e-4, atol=1e-6)


def test_what_diffusers_cannot_say_is_refused_by_name(place, tmp_path, capsys):
    net = DiffusersUNet(
        diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    )
    table = Discrete.linear_beta(100)
    cases = [
        (Denoiser(net, table, xhat.targets.SCORE), "diffusers has no target score: it knows epsilon, v_prediction, sample"),
        (Denoiser(torch.nn.Identity(), table, V), "diffusers has no Identity"),
    ]
    for denoiser, why in cases:
        with pytest.raises(RunError, match=why):
            write_diffusers(denoiser, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with pytest.raises(RunError, match="diffusers has no schedule Cosine"):
        scheduler_of(Denoiser(torch.nn.Identity(), Cosine(), V))
    assert json.loads(scheduler_of(Denoiser(net, table, V)).to_json_string())["num_train_timesteps"] == 100
    for arguments, why in (
        (("nowhere", "--to", "diffusers", tmp_path / "x"), "does not exist"),
        ((place, "--to", "jax", tmp_path / "x"), "to"),
        ((place, "--to", "diffusers", tmp_path / "a" / "b"), "the folder"),
    ):
        code, _, err = run_command("export", *arguments, capsys=capsys)
        assert (code, err.strip().count("\n")) == (2, 0)
        assert why in err
