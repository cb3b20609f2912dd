"""Checkpoints of diffusers: the same numbers as diffusers' own loops, configs that carry them, and what is refused."""

import json
import sys
import warnings

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import xhat
from xhat import DDIM, NOISE, X0, Denoiser, Discrete, V
from xhat.config.build import build_denoiser
from xhat.config.config import Config
from xhat.config.expressions import evaluate
from xhat.data.shape import DataShape
from xhat.diffusion.variances import FORWARD, LEARNED, POSTERIOR
from xhat.errors import ConfigError, RunError
from xhat.pipelines.diffusers_folder import describe, load_diffusers, weights
from xhat.pipelines.diffusers_unet import DiffusersUNet, diffusers_schedule, diffusers_unet
from xhat.registry import TARGETS, VARIANCES
from xhat.runs.load import load
from xhat.runs.weights import save_weights
from xhat.sampling.sample import sample
from xhat.sampling.spacings import uniform_times

STEPS = 50
TYPES = {"epsilon": NOISE, "v_prediction": V, "sample": X0}
NAMES = {**TARGETS, **VARIANCES, "diffusers_unet": diffusers_unet, "diffusers_schedule": diffusers_schedule}


def unet_of(classes=None, outputs=3, **kwargs):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": outputs,
            "num_class_embeds": classes,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            **kwargs,
        }
    )
    return unet.eval()


def scheduler_of(kind=diffusers.DDPMScheduler, **kwargs):
    own = {"clip_sample": False} if kind in (diffusers.DDPMScheduler, diffusers.DDIMScheduler) else {}
    return kind(**{"num_train_timesteps": STEPS, "beta_start": 1e-3, "beta_end": 0.2, **own, **kwargs})


@pytest.fixture
def save(tmp_path):
    """Writes a pipeline folder and returns it."""

    def write(unet=None, scheduler=None):
        pipeline = diffusers.DDPMPipeline(unet or unet_of(), scheduler or scheduler_of())
        pipeline.save_pretrained(tmp_path / "pipeline")
        return tmp_path / "pipeline"

    return write


@pytest.fixture
def z(rng):
    return torch.randn(3, 3, 8, 8, generator=rng)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**values, **changes}.items() if v is not ...}))


def refuses(call, *words):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# the same numbers


@pytest.mark.parametrize("prediction", TYPES)
@torch.no_grad()
def test_predictions_are_those_of_the_scheduler(prediction, save, z):
    """x0 is pred_original_sample, and noise what add_noise needs to make z of it; the first, a middle and the last step."""
    unet, scheduler = unet_of(), scheduler_of(prediction_type=prediction)
    denoiser = load_diffusers(save(unet, scheduler))
    assert denoiser.target is TYPES[prediction]
    for k in (0, 17, STEPS - 1):
        prediction_ = denoiser(z, torch.full((3,), (k + 1) / STEPS))
        x0 = scheduler.step(unet(z, k).sample, k, z).pred_original_sample
        close(prediction_.x0, x0, 1e-4)
        close(scheduler.add_noise(x0, prediction_.noise, torch.full((3,), k)), z, 1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(
    ("prediction", "zero_terminal"),
    [
        *((prediction, False) for prediction in TYPES),
        ("v_prediction", True),
        ("sample", True),
    ],  # noise: test_noise_at_zero_signal
)
@torch.no_grad()
def test_a_whole_ddim_loop(prediction, zero_terminal, spacing, save, z):
    """Ten steps from pure noise on the same weights; diffusers' trailing spacing is our uniform_times."""
    unet = unet_of()
    peer = scheduler_of(
        diffusers.DDIMScheduler, prediction_type=prediction, timestep_spacing=spacing, rescale_betas_zero_snr=zero_terminal
    )
    denoiser = load_diffusers(save(unet, peer))
    peer.set_timesteps(10)
    times = torch.cat([(peer.timesteps.double() + 1) / STEPS, torch.zeros(1).double()])
    if spacing == "trailing":
        assert torch.equal(times, uniform_times(denoiser.schedule, 10))
    ours = sample(denoiser, DDIM(), z, times)
    theirs = z
    for k in peer.timesteps:
        theirs = peer.step(unet(theirs, k).sample, k, theirs).prev_sample
    close(ours, theirs, 1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        scheduler_of(beta_schedule="squaredcos_cap_v2"),
        scheduler_of(beta_schedule="scaled_linear"),
        scheduler_of(trained_betas=torch.linspace(0.01, 0.3, 20).tolist()),
        scheduler_of(diffusers.PNDMScheduler),
        scheduler_of(diffusers.DPMSolverMultistepScheduler),
        scheduler_of(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ],
    ids=["cosine", "scaled_linear", "trained_betas", "pndm", "dpm_solver", "zero_terminal"],
)
def test_any_table_of_steps(scheduler, save):
    """The loaded schedule and the one of the config are the scheduler's alphas_cumprod."""
    folder = save(scheduler=scheduler)
    written = evaluate(describe(folder)["schedule"], NAMES)
    for schedule in (load_diffusers(folder).schedule, written):
        assert isinstance(schedule, Discrete)
        torch.testing.assert_close(schedule.alpha_bar[1:], scheduler.alphas_cumprod.double(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("variance_type", "variance", "outputs"),
    [
        ("fixed_small", POSTERIOR, 3),
        ("fixed_small_log", POSTERIOR, 3),
        ("fixed_large", FORWARD, 3),
        ("learned_range", LEARNED, 6),
    ],
)
@torch.no_grad()
def test_the_reverse_step_has_the_schedulers_variance(variance_type, variance, outputs, save, z):
    """Mean plus standard deviation times diffusers' own noise is diffusers' step."""
    unet, scheduler = unet_of(outputs=outputs), scheduler_of(variance_type=variance_type)
    denoiser = load_diffusers(save(unet, scheduler))
    assert denoiser.variance is variance
    k, generator = 30, torch.Generator().manual_seed(3)
    theirs = scheduler.step(unet(z, k).sample, k, z, generator=torch.Generator().manual_seed(3)).prev_sample
    noise = torch.randn(z.shape, generator=generator)
    ours = denoiser.reverse(z, torch.full((3,), (k + 1) / STEPS), torch.full((3,), k / STEPS)).sample(noise)
    close(ours, theirs, 1e-4)


@pytest.mark.parametrize("embedding", ["positional", "learned"])
@torch.no_grad()
def test_timesteps_are_diffusers_own(embedding, save, z):
    """Step i of DDPM is index i - 1 there, also where the network looks it up in a table of T rows."""
    unet = unet_of(time_embedding_type=embedding, num_train_timesteps=STEPS)
    denoiser = load_diffusers(save(unet))
    close(denoiser(z, torch.tensor([1.0, 0.02, 0.5])).raw, unet(z, torch.tensor([49, 0, 24])).sample)


@torch.no_grad()
def test_older_checkpoints(save, z):
    """Attention under its names of 2022, half precision, dropout: the same numbers in float32, and nothing dropped."""
    unet = unet_of(dropout=0.5)
    denoiser = load_diffusers(save(unet))
    file = (folder := save(unet.half())) / "unet" / "diffusion_pytorch_model.safetensors"
    older = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = load_file(file)
    assert any("to_q." in name for name in state)
    for new, old in older.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    save_file(state, file, metadata={"format": "pt"})
    again, t = load_diffusers(folder), torch.full((3,), 0.5)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again(z, t).raw, again(z, t).raw)
    close(again(z, t).raw, denoiser(z, t).raw, 5e-3)


# classes


@torch.no_grad()
def test_labels_mean_what_they_meant_and_a_null_class_is_added(save, z):
    """4 embeddings: labels 0..3 give diffusers' outputs; 4, and no label, is their mean."""
    unet = unet_of(classes=4)
    denoiser, t, label = load_diffusers(save(unet)), torch.full((3,), 0.5), torch.tensor([0, 3, 2])
    assert denoiser.net.classes == 4
    close(denoiser(z, t, {"label": label}).raw, unet(z, 24, class_labels=label).sample)
    null = denoiser(z, t, {"label": torch.full((3,), 4)}).raw
    assert torch.equal(null, denoiser(z, t).raw)
    unet.class_embedding.weight.copy_(unet.class_embedding.weight.mean(0, keepdim=True).expand(4, -1))
    close(null, unet(z, 24, class_labels=label).sample)


@torch.no_grad()
def test_the_null_class_a_checkpoint_was_trained_with(save, z):
    """Data of 3 classes on 4 embeddings: the last is the null class, and nothing is added."""
    unet = unet_of(classes=4)
    denoiser = load_diffusers(save(unet), classes=3)
    assert denoiser.net.classes == 3
    close(denoiser(z, torch.full((3,), 0.5)).raw, unet(z, 24, class_labels=torch.full((3,), 3)).sample)


def test_the_null_class_learns(z):
    """Gradients reach the added row, and the others."""
    net = DiffusersUNet(unet_of(classes=4))
    net(z, torch.full((3,), 5.0), torch.tensor([0, 1, 4])).square().sum().backward()
    grad = net.unet.class_embedding.weight.grad
    assert (grad.abs().sum(1) > 0).tolist() == [True, True, False, False, True]


@torch.no_grad()
def test_back_to_diffusers(save, z, tmp_path):
    """What was fine-tuned can be saved by diffusers, null class included, and read again."""
    denoiser = load_diffusers(save(unet_of(classes=4)))
    denoiser.net.unet.save_pretrained(tmp_path / "back")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "back").eval()
    close(again(z, 24, class_labels=torch.full((3,), 4)).sample, denoiser(z, torch.full((3,), 0.5)).raw)


def test_wrong_numbers_of_classes(save, z):
    folder = save(unet_of(classes=4))
    refuses(lambda: load_diffusers(folder, classes=7), "4 class embeddings", "7 classes")
    plain = save(unet_of())
    refuses(lambda: load_diffusers(plain, classes=2), "no class labels", "2 classes")
    refuses(lambda: load_diffusers(plain)(z, torch.ones(3), {"label": torch.zeros(3).long()}), "no classes")


# the config of a run


@pytest.mark.parametrize("classes", [None, 4])
@torch.no_grad()
def test_a_weights_file_is_enough_to_sample_from(classes, save, z, tmp_path):
    """describe and weights rebuild the checkpoint without its folder: as expressions, and in a run's own file."""
    folder = save(unet_of(classes, outputs=6), scheduler_of(prediction_type="v_prediction", variance_type="learned_range"))
    original, settings = load_diffusers(folder), Config(**describe(folder))
    made, shape = {key: evaluate(text, NAMES) for key, text in describe(folder).items()}, DataShape(3, 8, classes)
    state = weights(folder)
    folder.rename(folder.with_name("gone"))
    by_hand = Denoiser(made["network"], made["schedule"], made["target"], variance=made["variance"])
    built = build_denoiser(settings, shape)
    for denoiser in (by_hand, built):
        missing, unexpected = denoiser.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.startswith("schedule.") for name in missing)
    save_weights(tmp_path / "one.safetensors", built.state_dict(), settings, shape, 0)
    t = torch.tensor([0.02, 0.5, 1.0])
    for denoiser in (by_hand.eval(), built.eval(), load(tmp_path / "one.safetensors").denoiser.cpu()):
        again, first = denoiser(z, t), original(z, t)
        assert torch.equal(again.x0, first.x0)
        assert torch.equal(again.log_variance, first.log_variance)


def test_the_config_keeps_no_path(save):
    """What it holds is of the model; where it was saved is nobody's business."""
    folder = save(diffusers.UNet2DModel.from_pretrained(save() / "unet"))
    edit(folder / "unet" / "config.json", _name_or_path=str(folder))
    assert not any(str(folder) in text or "_name_or_path" in text for text in describe(folder).values())


def test_data_that_do_not_fit(save):
    settings = Config(**describe(save()))
    refuses(lambda: build_denoiser(settings, DataShape(1, 8, None)), "3 channels, the data have 1")
    refuses(lambda: build_denoiser(settings, DataShape(3, 9, None)), "multiple of 2, not 9")
    refuses(lambda: build_denoiser(settings, DataShape(3, 8, 10)), "no class labels, the data have 10")


def test_training_moves_every_weight(save, z):
    """One step of the objective on the adapter: a gradient for each parameter."""
    denoiser = load_diffusers(save()).train()
    objective = xhat.Objective(denoiser, {"denoise": xhat.Term(xhat.Denoising(space=X0))})
    objective(z, step=0)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


@pytest.mark.trap(6)
@torch.no_grad()
def test_low_noise_is_seen_under_bf16_autocast():
    """z = -1 + 0.001 noise is a constant in bf16; the edges stay float32 and the body does not."""
    net, seen = DiffusersUNet(unet_of()), {}
    net.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.setdefault("first", []).append(output))
    inner = net.unet.down_blocks[0].resnets[0].conv1
    inner.register_forward_hook(lambda module, inputs, output: seen.setdefault("inner", []).append(output.dtype))
    for sign in (1, -1):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(torch.full((1, 3, 8, 8), -1.0) + sign * 0.001, torch.zeros(1))
        assert out.dtype == torch.float32
    assert seen["inner"] == [torch.bfloat16] * 2
    assert seen["first"][0].dtype == torch.float32
    assert not torch.equal(*seen["first"])


# what is refused


@pytest.mark.trap(24)
@pytest.mark.parametrize("prediction", TYPES)
def test_another_target_is_refused_with_the_way_to_convert(prediction, save):
    """In Python and in a config; its own target passes."""
    folder, own = save(scheduler=scheduler_of(prediction_type=prediction)), TYPES[prediction]
    assert load_diffusers(folder, own).target is own
    described = describe(folder)
    for target in {*TYPES.values()} - {own}:
        refuses(lambda t=target: load_diffusers(folder, t), f"keep target {own.name}", f"denoising(space={target.name})")
        schedule = evaluate(described["schedule"], NAMES)
        refuses(lambda t=target, s=schedule: Denoiser(evaluate(described["network"], NAMES), s, t), f"use target {own.name}")


def test_noise_at_zero_signal(save):
    """A network that predicts noise under a zero-terminal table: its x0 does not exist at t = 1."""
    folder = save(scheduler=scheduler_of(rescale_betas_zero_snr=True))
    refuses(lambda: load_diffusers(folder), "target noise cannot give x0 at t = 1")


def damage(folder, what):
    unet, scheduler = folder / "unet", folder / "scheduler" / "scheduler_config.json"
    file = unet / "diffusion_pytorch_model.safetensors"
    if what == "no index":
        (folder / "model_index.json").unlink()
    elif what == "latent":
        edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    elif what == "conditional":
        edit(folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])
    elif what == "no unet config":
        (unet / "config.json").unlink()
    elif what == "index is a list":
        (folder / "model_index.json").write_text("[1]")
    elif what == "cut config":
        (unet / "config.json").write_text('{"in_channels": 3,')
    elif what == "binary config":
        scheduler.write_bytes(b"\xff\xfe\x00\xff")
    elif what == "cut weights":
        file.write_bytes(file.read_bytes()[:5000])
    elif what == "empty weights":
        file.write_bytes(b"")
    elif what == "cut weights beside a pickle":
        torch.save({}, unet / "diffusion_pytorch_model.bin")
        file.write_bytes(file.read_bytes()[:5000])
    elif what == "pickle":
        torch.save({}, unet / "diffusion_pytorch_model.bin")
        file.unlink()
    elif what == "no weights":
        file.unlink()
    elif what == "weights of another network":
        unet_of(block_out_channels=(12, 16)).save_pretrained(folder / "other")
        (folder / "other" / file.name).replace(file)
    elif what == "weights of a smaller network":
        edit(unet / "config.json", layers_per_block=2)
    elif what == "weights of a larger network":
        edit(unet / "config.json", add_attention=False)
    elif what == "one weight is missing":
        save_file({k: v for k, v in load_file(file).items() if k != "conv_norm_out.bias"}, file, metadata={"format": "pt"})
    elif what == "unknown block":
        edit(unet / "config.json", down_block_types=["NoBlock", "NoBlock"])
    elif what == "two inputs":
        edit(unet / "config.json", in_channels=6)
    elif what == "flow":
        diffusers.FlowMatchEulerDiscreteScheduler().save_config(folder / "scheduler")
    elif what == "no scheduler class":
        edit(scheduler, _class_name="Path")
    else:
        edit(scheduler, **what)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no index", ("no diffusers pipeline", "model_index.json", "save_pretrained")),
        ("latent", ("vqvae (VQModel)", "a unet (UNet2DModel) and a scheduler")),
        ("conditional", ("UNet2DConditionModel", "a unet (UNet2DModel) and a scheduler")),
        ("no unet config", ("config.json", "missing")),
        ("index is a list", ("model_index.json", "no JSON object")),
        ("cut config", ("config.json", "no JSON object")),
        ("binary config", ("scheduler_config.json", "damaged")),
        ("cut weights", ("safetensors", "damaged")),
        ("empty weights", ("safetensors", "damaged")),
        ("cut weights beside a pickle", ("safetensors", "damaged")),
        ("pickle", (".bin", "safe_serialization=True")),
        ("no weights", ("has no weights (.safetensors)",)),
        ("weights of another network", ("fit its config.json",)),
        ("weights of a smaller network", ("fit its config.json",)),
        ("weights of a larger network", ("fit its config.json",)),
        ("one weight is missing", ("fit its config.json", "conv_norm_out.bias")),
        ("unknown block", ("config.json",)),
        ("two inputs", ("unet maps 6 to 3 channels",)),
        ("flow", ("no alphas_cumprod", "Flow(shift)")),
        ("no scheduler class", ("_class_name Path is no scheduler",)),
        ({"prediction_type": "flow_prediction"}, ("prediction_type flow_prediction", "epsilon, v_prediction, sample")),
        ({"prediction_type": ["epsilon"]}, ("prediction_type ['epsilon']",)),
        ({"variance_type": "learned"}, ("variance_type learned", "fixed_small")),
        ({"variance_type": "fixed_large_log"}, ("variance_type fixed_large_log", "fixed_large")),
        ({"variance_type": "learned_range"}, ("unet maps 3 to 3 channels", "2 outputs per image channel")),
        ({"beta_schedule": "nonsense"}, ("nonsense",)),
        ({"num_train_timesteps": "many"}, ("DDPMScheduler",)),
        ({"clip_sample": True, "clip_sample_range": {"a": 1}}, ("clip_sample_range must be a number, got {'a': 1}",)),
    ],
    ids=str,
)
def test_bad_checkpoints(what, words, save):
    """One line each, from load_diffusers and from weights alike."""
    folder = save()
    damage(folder, what)
    refuses(lambda: load_diffusers(folder), *words)
    refuses(lambda: weights(folder), *words)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@torch.no_grad()
def test_weights_saved_from_a_wrapped_network(prefix, save, z):
    unet = unet_of()
    folder = save(unet)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {f"{prefix}{name}": value.clone() for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    close(load_diffusers(folder)(z, torch.full((3,), 1.0)).raw, unet(z, STEPS - 1).sample)
    save_file({**tensors, "other": torch.zeros(1)}, file, metadata={"format": "pt"})
    refuses(lambda: load_diffusers(folder), "fit its config.json")


@pytest.mark.trap(42)
@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (diffusers.DDIMScheduler(num_train_timesteps=STEPS, clip_sample_range=2.0), "clip_sample: it keeps x0_hat within ±2 "),
        (diffusers.DDPMScheduler(num_train_timesteps=STEPS), "clip_sample: it keeps x0_hat within ±1 "),
        (scheduler_of(thresholding=True, timestep_spacing="trailing"), "thresholding: it keeps x0_hat within a quantile"),
        (scheduler_of(diffusers.DDIMScheduler, steps_offset=1, set_alpha_to_one=False), None),
        (scheduler_of(), None),
    ],
)
def test_clipping_that_our_samplers_leave_out_is_said(scheduler, said, save):
    folder = save(None, scheduler)
    for read in (load_diffusers, describe):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(folder)
        found = [str(w.message) for w in caught if "scheduler has" in str(w.message)]
        assert len(found) == (said is not None)
        if said:
            assert said in found[0]
            assert ("timestep_spacing leading" in found[0]) == (scheduler.config.timestep_spacing == "leading")


@pytest.mark.trap(42)
@torch.no_grad()
def test_what_the_note_on_clipping_means(save):
    """The pipeline's own largest pixel is 1; without its clipping the same steps end far outside."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=STEPS, timestep_spacing="trailing")
    unet = unet_of()
    with pytest.warns(UserWarning, match="the largest pixel may lie far outside"):
        denoiser = load_diffusers(save(unet, scheduler))
    scheduler.set_timesteps(10)
    start = theirs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, t).sample, t, theirs).prev_sample
    ours = sample(denoiser, DDIM(), start, uniform_times(denoiser.schedule, 10))
    assert float(theirs.abs().max()) <= 1.0001 < float(ours.abs().max())


@pytest.mark.parametrize("call", [load_diffusers, describe, weights])
def test_no_folder(call, tmp_path):
    """A name on the hub is not fetched."""
    with pytest.raises(RunError, match="google/ddpm-cat does not exist: xhat reads local folders"):
        call("google/ddpm-cat")


@pytest.mark.parametrize("change", [{"time_embedding_type": "fourier"}, {"class_embed_type": "timestep"}])
def test_other_inputs_than_steps_and_labels(change):
    refuses(lambda: DiffusersUNet(unet_of(**change)), *change.values())


def test_expressions_that_make_no_network():
    for text in ("diffusers_unet('no json')", "diffusers_unet('[]')", "diffusers_unet(3)", "diffusers_unet('{}', 'x0')"):
        with pytest.raises(ConfigError, match="diffusers_unet"):
            evaluate(text, NAMES)
    with pytest.raises(ConfigError, match="_class_name None is no scheduler"):
        evaluate("diffusers_schedule('{}')", NAMES)


def test_without_diffusers(save, monkeypatch):
    """One line that says what to install."""
    folder, text = save(), describe(save())["network"]
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refuses(lambda: load_diffusers(folder), "pip install diffusers")
    refuses(lambda: evaluate(text, NAMES), "pip install diffusers")
