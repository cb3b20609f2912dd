"""The command line on a tiny pipeline: train a LoRA, sample prompts, measure, resume; latents are made once."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from helpers import xhat as run_command
from xhat import load
from xhat.config.build import build_sampling
from xhat.config.config import Config
from xhat.config.data import build_data, build_parts
from xhat.errors import UsageError
from xhat.evaluation.reference import own_images
from xhat.files.cache import cache_folder
from xhat.losses.penalties import total_variation
from xhat.report.comparable import require_comparable
from xhat.rng import Shard

SMALL = ("--image_size", 16, "--batch_size", 4, "--log_every", 1, "--sampling.steps", 2, "--checkpoint_every", 2)


def write_pictures(root, n):
    """Noise with a red or a blue cast, captioned by it."""
    root.mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        color = ("red", "blue")[i % 2]
        pixels = rng.integers(0, 80, (20, 24, 3), dtype=np.uint8)
        pixels[..., 0 if color == "red" else 2] += 150
        Image.fromarray(pixels).save(root / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": f"a {color} cloth"}))
    (root / "metadata.jsonl").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pipeline `sd`, captioned `pics`, a file of prompts, a cache, and a run of an adapter."""
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XHAT_CACHE", str(root / "cache"))
        tiny.stable_diffusion().save_pretrained(root / "sd")
        write_pictures(root / "pics", 40)
        (root / "prompts.txt").write_text("a red cloth\na blue cloth\n")
        own = ("--init", root / "sd", "--lora", 2, "--data", root / "pics", "--held_out", 0.4)
        assert run_command("train", *own, "--run", root / "run", "--max_steps", 4, *SMALL)[0] == 0
        yield root


def base_of(run):
    return {name: x for name, x in load(run).denoiser.net.model.state_dict().items() if "lora" not in name}


def test_the_run_holds_the_adapter_alone(place):
    tensors = load_file(place / "run" / "ema.safetensors")
    assert all("lora" in name for name in tensors if name.startswith("net."))
    own = load_file(place / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    base = {name.replace("base_layer.", ""): x for name, x in base_of(place / "run").items()}
    assert all(torch.equal(base[name], x) for name, x in own.items())
    trained = load(place / "run")
    assert trained.shape.sample == (4, 8, 8)
    assert trained.config.lora == 2
    assert any(x.any() for name, x in tensors.items() if "lora_B" in name)
    pictures = list((place / "run" / "samples").iterdir())
    assert [Image.open(p).size[0] > 100 for p in pictures] == [True]


def test_a_resumed_run_is_the_straight_one(place, capsys):
    own = ("--init", place / "sd", "--lora", 2, "--data", place / "pics", "--held_out", 0.4, "--max_steps", 4, *SMALL)
    shutil.copytree(place / "run", place / "again")
    for file in ("checkpoint-00000004.safetensors", "ema.safetensors"):
        (place / "again" / file).unlink()
    code, _, err = run_command("train", "--run", place / "again", "--resume", capsys=capsys)
    assert code == 0
    assert "resuming from checkpoint-00000002.safetensors, step 2" in err
    ours, theirs = (load_file(place / name / "ema.safetensors") for name in ("again", "run"))
    assert [name for name, x in ours.items() if not torch.equal(x, theirs[name])] == []
    code, _, err = run_command("train", *own, "--run", place / "run", capsys=capsys)
    assert code == 2
    assert "add --resume" in err


def test_training_goes_on_from_an_adapter(place):
    """--init RUN: at a rate of nothing, the weights are those of the run."""
    own = ("--init", place / "run", "--run", place / "more", "--max_steps", 1, "--optimizer.lr", 0, "--sample_every", 9)
    assert run_command("train", *own)[0] == 0
    ours, theirs = (load_file(place / name / "ema.safetensors") for name in ("more", "run"))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items() if name.startswith("net."))


def test_prompts_are_drawn(place, capsys):
    out = place / "drawn.npz"
    prompts = ("--prompts", place / "prompts.txt", "--n", 3, "--guidance", 5, "--steps", 2)
    assert run_command("sample", place / "run", *prompts, "--out", out, capsys=capsys)[0] == 0
    found = np.load(out)
    assert (found["images"].shape, found["images"].dtype) == ((3, 16, 16, 3), np.uint8)
    assert found["prompts"].tolist() == ["a red cloth", "a blue cloth", "a red cloth"]
    one = ("--prompt", "a red cloth", "--guidance", 5, "--steps", 2)
    assert run_command("sample", place / "run", *one, "--out", place / "one.npz", capsys=capsys)[0] == 0
    assert np.abs(np.load(place / "one.npz")["images"][0].astype(int) - found["images"][0]).max() <= 1
    assert run_command("sample", place / "run", *one[:2], "--guidance", 1, "--out", place / "u.npz", capsys=capsys)[0] == 0
    assert not np.array_equal(np.load(place / "u.npz")["images"], np.load(place / "one.npz")["images"])


def decoded_variation(trained, n):
    """Total variation of what the pipeline makes of n samples, by hand."""
    home = trained.denoiser.net.home[0]
    real = own_images(trained.shape, build_parts(trained.config, trained.shape)).distribution
    cond = real.first(n, torch.device("cpu"))[1]
    sampling = build_sampling(trained.config.sampling, trained.denoiser.schedule)
    latents, _ = sampling.generate(trained.denoiser, trained.shape, n, cond=cond)
    with torch.no_grad():
        levels = ((home.decode(latents).clamp(-1, 1) + 1) * 127.5).round()  # of 8-bit pictures
    return float(total_variation(levels / 127.5 - 1).mean())


def test_it_is_measured_and_reported(place, capsys):
    code, out, _ = run_command("evaluate", place / "run", "--n", 6, "--json", capsys=capsys)
    assert code == 0
    found = json.loads(out)
    assert len(found["denoising"]["logsnr"]) > 5
    assert found["penalties"]["total_variation"] == pytest.approx(decoded_variation(load(place / "run"), 6), rel=1e-4)
    assert run_command("gradients", place / "run", capsys=capsys)[0] == 0
    assert run_command("report", place / "run", "--out", place / "r.html", capsys=capsys)[0] == 0
    assert "denoise" in (place / "r.html").read_text()
    for name, columns in (("samples", 10), ("trajectory", 3)):
        assert Image.open(place / "run" / "measured" / f"{name}.png").size[0] >= 16 * columns


def test_two_are_compared(place, tmp_path, capsys):
    """On the error within the range of levels: nobody knows the floor of latents, nor a bound."""
    common = {"init": str(place / "sd"), "lora": 2, "data": str(place / "pics"), "held_out": 0.4, "batch_size": 4}
    common |= {"max_steps": 2, "image_size": 16, "sampling.steps": 2}
    study = {"samples": 4, "common": common, "changes": {"slow": {"optimizer.lr": 1e-6}, "fast": {"optimizer.lr": 1e-2}}}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(study))
    code, out, _ = run_command("compare", tmp_path / "rates.yaml", "--out", tmp_path / "out", "--jobs", 1, capsys=capsys)
    assert code == 0
    assert "in range" in out
    assert "real images: total_variation" in out
    assert "in range: bits/dim of held-out samples within logsnr" in out


def test_latents_are_made_once(place, capsys):
    """From the cache afterwards, unless images, prompts, size or the autoencoder are others, or it is damaged."""
    config = Config(data=str(place / "pics"), network=f"pipeline({str(place / 'sd')!r})", image_size=16, label_dropout=0.0)
    said = []
    first = build_data(config, say=said.append)
    assert said == []
    [*files] = (place / "cache").iterdir()
    batch = first.train.get(0, Shard(0, 3), 3)
    again = build_data(config).train.get(0, Shard(0, 3), 3)
    assert torch.equal(batch.x0, again.x0)
    assert batch.extra["prompt"] == again.extra["prompt"]
    other = first.train.get(10, Shard(0, 3), 3)
    assert other.x0.shape == (3, 4, 8, 8)
    parts = [first.train.get(4, Shard(i, 4), 1).x0 for i in range(4)]
    assert torch.equal(torch.cat(parts), first.train.get(4, Shard(0, 4), 4).x0)
    files[0].write_bytes(files[0].read_bytes()[:-10])
    for path in files[1:]:
        path.write_bytes(path.read_bytes()[:-10])
    mended = build_data(config, say=said.append)
    assert len(said) == 2
    assert torch.equal(mended.train.get(0, Shard(0, 3), 3).x0, batch.x0)
    shutil.copytree(place / "sd", place / "other")
    changed = tiny.stable_diffusion()
    with torch.no_grad():
        changed.vae.encoder.conv_in.bias += 1
    changed.vae.save_pretrained(place / "other" / "vae")
    config.network = f"pipeline({str(place / 'other')!r})"
    assert build_data(config, say=said.append).train.fingerprint() != first.train.fingerprint()
    assert len(said) == 4


def test_latents_are_drawn_from_what_the_autoencoder_says(place):
    """Their mean over draws is the mean of the images; the held-out ones are the means themselves."""
    config = Config(data=str(place / "pics"), network=f"pipeline({str(place / 'sd')!r})", image_size=16, held_out=0.4)
    found = build_data(config)
    source = found.train.source if hasattr(found.train, "source") else found.train
    of, n = source.of, len(source)
    index = source.order.indices(0, n)
    draws = torch.stack([source.get(k, Shard(0, n), n).x0[source.order.indices(k * n, n).argsort()] for k in range(200)])
    mean, std = (x[source.rows][index.sort().values] for x in (of.mean, of.std))
    apart = (draws.mean(0) - mean) / (std / 200**0.5)
    assert apart.abs().max() < 5
    assert (apart.std() - 1).abs() < 0.1
    held = found.held_out.get(0, Shard(0, 4), 4)
    assert torch.equal(held.x0, of.mean[found.held_out.rows[:4]])


def test_prompts_alone_train_a_reward(place, capsys):
    chain = '{"reward": {"loss": "image_loss(total_variation, full_chain(steps=2, guidance=3.0), decode=decode(chunk=2))"}}'
    own = ("--init", place / "sd", "--lora", 2, "--data", place / "prompts.txt", "--max_steps", 2, *SMALL)
    assert run_command("train", *own, "--run", place / "reward", "--terms", chain, capsys=capsys)[0] == 0
    row = json.loads((place / "reward" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(row["terms"]) == {"reward"}
    code, _, err = run_command("train", *own, "--run", place / "never", capsys=capsys)
    assert code == 2
    assert 'term "denoise" is of images' in err
    assert "prompts alone" in err
    assert not (place / "never").exists()


def test_bad_input_is_one_line(place, capsys, tmp_path):
    sd, pics, run = place / "sd", place / "pics", tmp_path / "run"
    (tmp_path / "bare").mkdir()
    shutil.copy(pics / "00.png", tmp_path / "bare")
    cases = [
        (("train", "mnist", "--lora", 2, "--max_steps", 1), "lora: an adapter needs a pipeline under it"),
        (
            ("train", "mnist", "--max_steps", 1, "--terms.a.loss", "image_loss(total_variation, decode=decode())"),
            "this network came without one: give it, Decode(vae)",
        ),
        (("train", "--init", sd, "--data", tmp_path / "bare", "--max_steps", 1, *SMALL), "images without captions"),
        (("train", "--init", sd, "--data", tmp_path / "none", "--max_steps", 1, *SMALL), "does not exist"),
        (
            ("train", "--init", sd, "--data", pics, "--max_steps", 1, *SMALL, "--target", "v"),
            "were trained with target: network, not v",
        ),
        (("train", "--init", sd / "unet", "--data", pics, "--max_steps", 1), "unet"),
        (("train", "--init", sd, "--data", pics, "--max_steps", 1, "--image_size", 15), "must be multiples of"),
    ]
    for command, why in cases:
        code, _, err = run_command(*command, "--run", run, capsys=capsys)
        assert (code, err.strip().count("\n")) == (2, 0) or "encoding" in err, err
        assert code == 2
        assert why in err
        assert not run.exists()
    for command, why in (
        (("sample", place / "run"), "this run draws what it is told"),
        (("sample", place / "run", "--prompt", "a", "--prompts", "b"), "give one of them"),
        (("sample", place / "run", "--prompts", tmp_path / "none"), "there is no such file"),
    ):
        code, _, err = run_command(*command, "--out", tmp_path / "x.npz", capsys=capsys)
        assert (code, err.strip().count("\n")) == (2, 0)
        assert why in err


def test_the_cache_is_where_one_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("XHAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "xhat"


def test_a_run_of_prompts_alone_is_shown_and_says_what_it_lacks(place, tmp_path, capsys):
    """Its samples can be seen and penalized; errors need images, which --data names."""
    chain = '{"reward": {"loss": "image_loss(total_variation, full_chain(ddim, 2, last(1)), decode=decode())"}}'
    own = ("--init", place / "sd", "--lora", 2, "--data", place / "prompts.txt", "--terms", chain, "--run", tmp_path / "run")
    assert run_command("train", *own, "--max_steps", 1, *SMALL, capsys=capsys)[0] == 0
    code, _, err = run_command("evaluate", tmp_path / "run", capsys=capsys)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "trained on prompts alone: name images to measure on, --data FOLDER" in err
    code, out, _ = run_command("evaluate", tmp_path / "run", "--data", place / "pics", "--n", 4, "--json", capsys=capsys)
    assert code == 0
    assert set(json.loads(out)["penalties"]) == {"total_variation", "reward"}
    code, out, _ = run_command("inspect", tmp_path / "run", "--picture", tmp_path / "p.png", capsys=capsys)
    assert code == 0
    assert "DDIMScheduler" in out
    code, _, err = run_command("gradients", tmp_path / "run", capsys=capsys)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "trained on prompts alone: gradients are compared at images" in err
    code, _, _ = run_command("report", tmp_path / "run", "--n", 10, "--out", tmp_path / "r.html", capsys=capsys)
    assert code == 0
    assert "trained on prompts alone" in (tmp_path / "r.html").read_text()


def test_samples_of_a_file_are_those_pictures(place, tmp_path, capsys):
    """What `sample` wrote, `evaluate` reads."""
    out = tmp_path / "drawn.npz"
    prompts = ("--prompts", place / "prompts.txt", "--n", 4, "--steps", 2)
    assert run_command("sample", place / "run", *prompts, "--out", out, capsys=capsys)[0] == 0
    code, said, _ = run_command("evaluate", place / "run", "--samples", out, "--json", capsys=capsys)
    assert code == 0
    pixels = torch.from_numpy(np.load(out)["images"]).permute(0, 3, 1, 2)
    expected = float(total_variation(pixels.float() / 127.5 - 1).mean())
    assert json.loads(said)["penalties"]["total_variation"] == pytest.approx(expected, rel=1e-5)


def test_pictures_and_latents_are_not_compared(place):
    data = str(place / "pics")
    pictures, latents = Config(data=data), Config(data=data, network=f"pipeline({str(place / 'sd')!r}, 2)")
    require_comparable({"a": latents, "b": replace(latents, lora=2)})
    with pytest.raises(UsageError, match="one makes pictures, or latents of another autoencoder"):
        require_comparable({"a": pictures, "b": latents})


def test_a_penalty_of_latents_is_not_taken_for_one_of_pictures(place, tmp_path, capsys):
    common = {"init": str(place / "sd"), "lora": 2, "data": str(place / "pics"), "image_size": 16, "max_steps": 1}
    study = {"common": common, "changes": {"own": {}}, "penalties": {"raw": "image_loss(total_variation)"}}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(study))
    code, _, err = run_command("compare", tmp_path / "raw.yaml", "--out", tmp_path / "out", capsys=capsys)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "is of latents, and what is measured are pictures: add decode=decode()" in err


def test_an_adapter_is_inspected_before_it_is_trained(place, tmp_path, capsys):
    own = ("--init", place / "sd", "--lora", 2, "--data", place / "pics", "--image_size", 16)
    code, out, _ = run_command("inspect", *own, "--picture", tmp_path / "p.png", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["schedule"] == "of its DDIMScheduler"
    code, _, err = run_command("inspect", capsys=capsys)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "--init and a pipeline" in err


def test_a_run_is_found_from_anywhere(place, tmp_path, monkeypatch):
    """Also where the folder was named from the one that it is in."""
    monkeypatch.chdir(place)
    own = ("--init", "sd", "--lora", 2, "--data", "pics", "--run", tmp_path / "run", "--max_steps", 1, *SMALL)
    assert run_command("train", *own)[0] == 0
    monkeypatch.chdir(tmp_path)
    prompt = ("--prompt", "a red cloth", "--steps", 1)
    assert run_command("sample", "run", *prompt, "--out", "one.npz")[0] == 0


def test_what_cannot_be_started_from_is_named(place, tmp_path, capsys):
    lora = tmp_path / "lora"
    assert run_command("export", place / "run", "--to", "diffusers", lora, capsys=capsys)[0] == 0
    for start, why in (
        (place / "no", "does not exist: start from a run"),
        (place / "pics", "is neither a run of xhat nor a pipeline of diffusers"),
        (lora, "is a LoRA"),
        (lora / "pytorch_lora_weights.safetensors", "is a LoRA"),
    ):
        code, _, err = run_command("train", "--init", start, "--lora", 2, "--run", tmp_path / "x", capsys=capsys)
        assert (code, err.strip().count("\n")) == (2, 0)
        assert why in err


def test_what_does_little_is_said(place, tmp_path, capsys):
    """A share to hold out that comes to nothing, and a penalty that sees latents where it may have meant pictures."""
    own = ("--init", place / "sd", "--lora", 2, "--data", place / "pics", "--held_out", 0.2, "--max_steps", 1, *SMALL)
    term = ("--terms.smooth.loss", "image_loss(total_variation)")
    code, _, err = run_command("train", *own, *term, "--run", tmp_path / "run", capsys=capsys)
    assert code == 0
    assert "held_out 0.2 has no effect: it is fewer than 16 samples" in err
    assert "this image loss sees latents: add decode=decode()" in err
