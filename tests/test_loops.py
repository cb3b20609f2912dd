"""examples/: training scripts in the shape of diffusers' own, whose loss becomes xhat's; each as it was, and as it is."""

import difflib
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import xhat

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in (EXAMPLES / "before").glob("*.py"))
PAGE = ROOT / "docs" / "loops.md"
MOST = 20
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny pipelines `sd` and `sd3`, and captioned pictures."""
    sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
    import tiny

    root = tmp_path_factory.mktemp("loops")
    tiny.stable_diffusion().save_pretrained(root / "sd")
    tiny.stable_diffusion_3().save_pretrained(root / "sd3")
    (root / "pics").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / "pics" / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": f"a cloth {i}"}) for i in range(4)]
    (root / "pics" / "metadata.jsonl").write_text("\n".join(rows))
    return root


def arguments(name, place, out):
    pics = place / "pics"
    return {
        "text_to_image": (place / "sd", pics, out),
        "text_to_image_lora": (place / "sd", pics, out),
        "dreambooth_sd3": (place / "sd3", pics, pics, out),
        "unconditional": (pics, out),
    }[name]


def script(name, monkeypatch, folder=EXAMPLES):
    """The module of an example, as `python FILE` has it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(folder))
    for stale in (name, "pictures"):
        sys.modules.pop(stale, None)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_both_train(name, place, monkeypatch, tmp_path):
    for folder in (EXAMPLES / "before", EXAMPLES):
        found = script(name, monkeypatch, folder).main(*arguments(name, place, tmp_path / folder.name), steps=2)
        assert len(found) == 2
        assert all(np.isfinite(found))
        assert list((tmp_path / folder.name).rglob("*.safetensors"))


def formula(name, draw, model, scheduler):
    """The loss of the script as it was, for the draw of the one as it is."""
    with torch.no_grad():
        noise, cond = draw.noise, draw.cond or {}
        if name == "dreambooth_sd3":
            sigma = scheduler_sigma(scheduler, draw.t)
            z = (1 - sigma) * draw.x0 + sigma * noise
            prediction = model(hidden_states=z, timestep=1000 * sigma.flatten(), **cond, return_dict=False)[0]
            return (prediction - (noise - draw.x0)).square().mean()
        timesteps = (1000 * draw.t).round().long() - 1
        z = scheduler.add_noise(draw.x0, noise, timesteps)
        error = (model(z, timesteps, *cond.values(), return_dict=False)[0] - noise).square().mean((1, 2, 3))
        if name != "text_to_image":
            return error.mean()
        signal = scheduler.alphas_cumprod[timesteps]
        snr = signal / (1 - signal)
        return (error * snr.clamp(max=5.0) / snr).mean()


def scheduler_sigma(scheduler, t):
    """sigma = shift t / (1 + (shift - 1) t), as the scheduler's table has it."""
    shift = scheduler.config.shift
    return (shift * t / (1 + (shift - 1) * t)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_scripts(name, place, monkeypatch, tmp_path):
    """To 1e-6, on the draw that was made, before the first step."""
    seen, plain = [], xhat.Objective._draw

    def draw(self, *args):
        found = plain(self, *args)
        seen.append((found, self.per_image("denoise", found).mean().detach(), self))
        return found

    monkeypatch.setattr(xhat.Objective, "_draw", draw)
    losses = script(name, monkeypatch).main(*arguments(name, place, tmp_path / "out"), steps=1, learning_rate=0.0)
    (found, value, objective), *_ = seen
    net = objective.denoiser.net.model
    module = importlib.import_module(name)
    kind = module.FlowMatchEulerDiscreteScheduler if name == "dreambooth_sd3" else module.DDPMScheduler
    if name == "unconditional":
        scheduler = kind(num_train_timesteps=1000, clip_sample=False)
    else:
        folder = place / ("sd3" if name == "dreambooth_sd3" else "sd") / "scheduler"
        scheduler = (
            kind.from_pretrained(folder) if name == "dreambooth_sd3" else kind.from_pretrained(folder, clip_sample=False)
        )
    net.train(objective.denoiser.net.training)
    torch.testing.assert_close(value, formula(name, found, net, scheduler), rtol=1e-6, atol=1e-6)
    if name != "dreambooth_sd3":
        assert losses[0] == pytest.approx(float(value), rel=1e-6)


def difference(name):
    """What changes, as a diff without its head."""
    before, after = ((folder / f"{name}.py").read_text().splitlines() for folder in (EXAMPLES / "before", EXAMPLES))
    lines = list(difflib.unified_diff(before, after, n=1, lineterm=""))[2:]
    return [re.sub(r"^@@.*@@$", "@@", line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_a_few_lines(name):
    assert sum(line.startswith("+") for line in difference(name)) <= MOST


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_difference(name):
    assert "\n".join(difference(name)) in PAGE.read_text()
