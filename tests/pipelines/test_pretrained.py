"""Pretrained pipelines: their own parts make x0 and conditions, an adapter learns and nothing else, and they go out again."""

import diffusers
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import xhat
from xhat import DDIM, Denoising, Guided, Objective, Term, sample
from xhat.errors import RunError
from xhat.networks.adapters import without_adapters
from xhat.networks.autoencoders import decoded, moments
from xhat.sampling.samplers import Euler
from xhat.sampling.spacings import scheduler_times

PROMPTS, STEPS, SCALE = ["a red dog", "two cats on a mat."], 4, 5.0
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PIPELINES = [
    tiny.stable_diffusion,
    tiny.stable_diffusion_xl,
    tiny.stable_diffusion_3,
    tiny.flux_1,
    tiny.pixart_sigma,
    tiny.sana_1,
    tiny.dit_xl,
]
by_name = pytest.mark.parametrize("make", PIPELINES, ids=lambda make: make.__name__)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def prompts_for(make):
    return ["class 1", "class 7"] if make is tiny.dit_xl else PROMPTS


def size_for(make):
    return 8 if make is tiny.flux_1 else None


def refused(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@by_name
def test_a_pipeline_trains_an_adapter_and_nothing_else(make):
    """encode, three steps with a loss on decoded images, guided sampling: base weights stay to the last bit."""
    pipeline = make()
    before = {name: x.clone() for part in ("unet", "transformer") for name, x in vars_of(pipeline, part)}
    p = xhat.pretrained(pipeline, lora=2, size=size_for(make))
    x0, cond = p.encode(normal(2, 3, 16, 16).clamp(-1, 1), prompts_for(make))
    assert x0.shape == (2, 4, 8, 8)
    bright = xhat.ImageLoss(lambda images: images.flatten(1).mean(1), decode=p.decode, expect=None)
    objective = Objective(p.denoiser, {"denoise": Term(Denoising()), "bright": Term(bright, 0.1)})
    learned = {name: x for name, x in objective.named_parameters() if x.requires_grad}
    assert learned
    assert all("lora" in name and x.dtype == torch.float32 for name, x in learned.items())
    optimizer = torch.optim.SGD(learned.values(), lr=0.5)
    for _ in range(3):
        objective(x0, cond=cond)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    base = {name: x for part in ("unet", "transformer") for name, x in vars_of(pipeline, part)}
    changed = [name for name in base if ".lora_" in name]
    assert changed
    for name, value in before.items():
        kept = base.get(name, base.get(f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"))
        assert torch.equal(kept, value), name
    assert all(not x.requires_grad for x in p.pipeline.vae.parameters())
    drawn = sample(Guided(p.denoiser, SCALE), DDIM(), normal(2, 4, 8, 8), xhat.uniform_times(p.denoiser.schedule, 2), cond=cond)
    assert p.decode(drawn).shape == (2, 3, 16, 16)


def vars_of(pipeline, part):
    return getattr(pipeline, part).named_parameters() if hasattr(pipeline, part) else []


def theirs_of(make, pipeline, z):
    """Latents of the pipeline's own sampling, with its own text encoding and its own null."""
    own = {"num_inference_steps": STEPS, "output_type": "latent", "height": 16, "width": 16}
    if make is tiny.flux_1:
        row = pipeline(PROMPTS, latents=pipeline._pack_latents(z, *z.shape), guidance_scale=3.5, **own).images
        return pipeline._unpack_latents(row, 16, 16, 2)
    if make is tiny.pixart_sigma:
        own |= {"use_resolution_binning": False, "clean_caption": False}
    if make is tiny.sana_1:
        own |= {"use_resolution_binning": False, "height": 32, "width": 32}
    return pipeline(PROMPTS, latents=z, guidance_scale=SCALE, **own).images


@pytest.mark.parametrize("make", PIPELINES[:-1], ids=lambda make: make.__name__)
@torch.no_grad()
def test_prompts_and_null_are_the_pipelines_own(make):
    """Guided latents equal the pipeline's, with all that it does by default to prompts."""
    side = 16 if make is tiny.sana_1 else 8
    z = normal(2, 4, side, side)
    pipeline = make()
    p = xhat.pretrained(pipeline, size=side)
    scheduler = pipeline.scheduler
    if make is tiny.flux_1:
        scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)], mu=dynamic(scheduler.config, 16))
    else:
        scheduler.set_timesteps(STEPS)
    cond = p.told(PROMPTS, pixels=(16, 16))
    model = p.denoiser if make is tiny.flux_1 else Guided(p.denoiser, SCALE)
    sampler = DDIM() if isinstance(scheduler, diffusers.DDIMScheduler) else Euler()
    ours = sample(model, sampler, z, scheduler_times(p.denoiser.schedule, scheduler), cond=cond)
    tiny.close_to(ours, lambda z: theirs_of(make, make(), z), z)


def dynamic(config, tokens):
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


@torch.no_grad()
def test_latents_are_those_of_the_scripts():
    """(code - shift) · scale; drawn from their distribution with a generator; and back."""
    images = normal(2, 3, 16, 16).clamp(-1, 1)
    for vae, shift in ((tiny.vae(), 0.0), (tiny.vae(4, 0.06), 0.06)):
        codes = vae.encode(images).latent_dist
        mean, std = moments(vae, images)
        close(mean, (codes.mode() - shift) * vae.config.scaling_factor)
        pipeline = tiny.stable_diffusion(vae=vae)
        p = xhat.pretrained(pipeline)
        found = p.latents(images, generator=torch.Generator().manual_seed(3))
        close(found, (codes.sample(torch.Generator().manual_seed(3)) - shift) * vae.config.scaling_factor)
        close(found, mean + std * normal(2, 4, 8, 8, seed=3))
        close(p.decode(mean), vae.decode(mean / vae.config.scaling_factor + shift).sample)
    deep = tiny.deep_vae()
    close(moments(deep, images)[0], deep.encode(images).latent * deep.config.scaling_factor)
    own = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2, 3, 4]
    ).eval()
    mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1), torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    found = moments(own, images)[0]
    close(found, (own.encode(images).latent_dist.mean - mean) * own.config.scaling_factor / std)
    close(decoded(own, found), own.decode(found * std / own.config.scaling_factor + mean).sample)


@by_name
def test_an_adapter_goes_out_and_in_again(make, tmp_path):
    """What is saved, read by diffusers or PEFT themselves on a fresh pipeline, predicts the same."""
    p = xhat.pretrained(make(), lora=peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False), size=size_for(make))
    p.save(tmp_path / "lora")
    z, t, cond = normal(2, 4, 8, 8), torch.tensor([0.3, 0.8]), p.told(prompts_for(make), pixels=(16, 16))
    fresh = make()
    plain = xhat.pretrained(fresh, size=size_for(make))
    with torch.no_grad():
        without = plain.denoiser(z, t, cond).x0
        with without_adapters(p.model):
            close(p.denoiser(z, t, cond).x0, without, 0)
        assert not torch.allclose(p.denoiser(z, t, cond).x0, without, atol=1e-3)
        if hasattr(fresh, "load_lora_weights"):
            fresh.load_lora_weights(tmp_path / "lora")
            back = xhat.pretrained(fresh, size=size_for(make))
        else:
            fresh.transformer = peft.PeftModel.from_pretrained(fresh.transformer, tmp_path / "lora")
            back = xhat.pretrained(fresh, size=size_for(make))
        close(back.denoiser(z, t, cond).x0, p.denoiser(z, t, cond).x0, 1e-6)
    with pytest.raises(RunError, match="exists already"):
        p.save(tmp_path / "lora")


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@by_name
def test_in_and_out_without_a_step_changes_nothing(make, tmp_path):
    make().save_pretrained(tmp_path / "before")
    p = xhat.pretrained(tmp_path / "before", size=size_for(make))
    p.save(tmp_path / "after")
    before, after = tree(tmp_path / "before"), tree(tmp_path / "after")
    assert before.keys() == after.keys()
    weights = [path for path in before if path.suffix == ".safetensors"]
    assert len(weights) >= 2
    assert all(before[path] == after[path] for path in weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a tiny Stable Diffusion."""
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    tiny.stable_diffusion().save_pretrained(path)
    return path


def copy(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def prediction(found):
    cond = found.told(PROMPTS)
    with torch.no_grad():
        return found.denoiser(normal(2, 4, 8, 8), torch.tensor([0.3, 0.8]), cond).x0


@pytest.mark.parametrize(
    "how", [{"variant": "fp16"}, {"max_shard_size": "20KB"}, {"variant": "fp16", "max_shard_size": "20KB"}]
)
def test_variants_and_shards_are_read(how, folder, tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "other", **how)
    names = [path.name for path in (tmp_path / "other" / "unet").glob("*.safetensors")]
    assert (len(names) > 1) == ("max_shard_size" in how)
    assert all(("fp16" in name) == ("variant" in how) for name in names)
    close(prediction(xhat.pretrained(tmp_path / "other")), prediction(xhat.pretrained(folder)), 0)


def test_half_precision_on_demand(folder):
    p = xhat.pretrained(folder, lora=2, dtype=torch.bfloat16)
    assert p.model.dtype == torch.bfloat16
    assert {x.dtype for x in p.model.parameters() if x.requires_grad} == {torch.float32}
    x0, cond = p.encode(normal(2, 3, 16, 16).clamp(-1, 1), PROMPTS)
    assert x0.dtype == torch.float32
    loss = Objective(p.denoiser, {"denoise": Term(Denoising())})(x0, cond=cond)["loss"]
    loss.backward()
    assert all(x.grad is not None for x in p.model.parameters() if x.requires_grad)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers_are_taken_off(prefix, folder, tmp_path):
    path = copy(folder, tmp_path)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({prefix + name: x for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
    close(prediction(xhat.pretrained(path)), prediction(xhat.pretrained(folder)), 0)


def break_it(path, name):
    import shutil

    unet, file = path / "unet", path / "unet" / "diffusion_pytorch_model.safetensors"
    if name == "no tokenizer":
        shutil.rmtree(path / "tokenizer")
    if name == "pickled":
        file.rename(file.with_suffix(".bin"))
    if name == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if name == "one less":
        tensors = load_file(file)
        del tensors["conv_in.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    if name == "one more":
        save_file({**load_file(file), "more": torch.zeros(1)}, file, metadata={"format": "pt"})
    if name == "code from elsewhere":
        index = path / "model_index.json"
        index.write_text(
            index.read_text().replace('"transformers",\n    "CLIPTokenizer"', '"antigravity",\n    "CLIPTokenizer"')
        )
    if name == "no pipeline":
        (path / "model_index.json").unlink()
    if name == "model":
        shutil.copytree(unet, path.parent / "model")
        return path.parent / "model"
    if name == "checkpoint":
        own = path.parent / "checkpoint-500"
        shutil.copytree(unet, own / "unet")
        (own / "random_states_0.pkl").write_bytes(b"")
        return own
    if name == "adapter":
        p = xhat.pretrained(path, lora=2)
        p.save(path.parent / "adapter")
        return path.parent / "adapter"
    if name == "file":
        return file
    if name == "nothing":
        return path.parent / "nothing"
    return path


BROKEN = {
    "no tokenizer": ["has no tokenizer/", "copy the pipeline whole"],
    "pickled": ["holds pickled weights", "safe_serialization=True"],
    "cut": ["damaged", "copy it anew"],
    "one less": ["lacks conv_in.weight"],
    "one more": ["one too many, more"],
    "code from elsewhere": ["antigravity.CLIPTokenizer", "if you trust it"],
    "no pipeline": ["has no model_index.json"],
    "model": ["is one model (UNet2DConditionModel)", "unet=UNet2DConditionModel.from_pretrained"],
    "checkpoint": ["training checkpoint of Accelerate", "checkpoint-500/unet"],
    "adapter": ["is a LoRA", "load_lora_weights"],
    "file": ["is a file", "from_single_file"],
    "nothing": ["does not exist"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named_with_the_way_out(name, folder, tmp_path):
    path = break_it(copy(folder, tmp_path), name)
    with pytest.raises(RunError) as error:
        xhat.pretrained(path)
    refused(error, *BROKEN[name])


def test_bad_input_is_one_line(folder):
    pictures = normal(2, 3, 16, 16).clamp(-1, 1)
    p = xhat.pretrained(tiny.stable_diffusion())
    cases = [
        (lambda: xhat.pretrained(tiny.stable_diffusion(), lora=0), "1 or more"),
        (lambda: xhat.pretrained(tiny.stable_diffusion(), lora="x"), "a rank such as 16"),
        (lambda: xhat.pretrained(tiny.stable_diffusion(), lora=peft.LoraConfig(target_modules=["nope"])), "fits no layer"),
        (lambda: xhat.pretrained(xhat.pretrained(tiny.stable_diffusion(), lora=2).pipeline, lora=2), "has an adapter already"),
        (lambda: xhat.pretrained(torch.nn.Linear(1, 1)), "has no transformer or unet"),
        (lambda: p.encode(pictures, PROMPTS[:1]), "1 prompts for 2 images"),
        (lambda: p.encode(pictures), "is told prompts: give one for each sample"),
        (lambda: p.encode(pictures[:, :1], PROMPTS), "repeat the channel of grey images"),
        (lambda: p.encode(pictures[:, :, :15], PROMPTS), "must be multiples"),
        (lambda: p.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), PROMPTS), "for 8-bit pixels"),
    ]
    for call, why in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        refused(error, why)


def test_a_pipeline_without_a_tokenizer():
    p = xhat.pretrained(tiny.stable_diffusion(tokenizer=None))
    assert p.null is None
    with pytest.raises(RunError) as error:
        p.told(PROMPTS)
    refused(error, "has no tokenizer", "as cond")


def test_a_shift_of_another_size_is_said():
    p = xhat.pretrained(tiny.flux_1(), size=8)
    with pytest.warns(UserWarning, match=r"latents of \(16, 8\), but the schedule's shift is that of \(8, 8\)"):
        p.latents(normal(1, 3, 32, 16).clamp(-1, 1))


def test_a_pipeline_of_pixels():
    """No autoencoder, no prompts: images are x0, labels are the user's own condition."""
    own = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(sample_size=8, **own, **blocks).eval()
    p = xhat.pretrained(
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(clip_sample=False)),
        lora=peft.LoraConfig(r=2, target_modules=["conv1"]),
    )
    images = normal(2, 3, 8, 8)
    x0, cond = p.encode(images)
    assert (x0 is images, cond, p.decode(x0) is x0, p.null) == (True, {}, True, None)
    Objective(p.denoiser, {"denoise": Term(Denoising())})(x0)["loss"].backward()


def test_a_controlnet_comes_with_its_pipeline():
    p = xhat.pretrained(tiny.stable_diffusion_controlnet())
    x0, cond = p.encode(normal(2, 3, 16, 16).clamp(-1, 1), PROMPTS)
    cond["controlnet_cond"] = normal(2, 3, 16, 16).clamp(0, 1)
    assert p.denoiser(x0, torch.tensor([0.3, 0.8]), cond).x0.shape == x0.shape


def test_pixels_of_8_bits_are_not_taken_for_images():
    made = xhat.pretrained(tiny.stable_diffusion())
    with pytest.raises(ValueError, match=r"images are floats in \[-1, 1\], got up to 255: for pixels x / 127.5 - 1"):
        made.encode(torch.full((1, 3, 16, 16), 255.0), ["a"])
    assert len(repr(made)) < 100
