"""Models of diffusers as denoisers: adapters go on working, weights stay, and what cannot be had is refused in one line."""

import diffusers
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import xhat
from xhat import NOISE, Denoising, Objective, Term, V


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refused(error, *words):
    """The message is one line, and has these words."""
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


TEXT = {"encoder_hidden_states": normal(2, 5, tiny.TEXT)}
LORA = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_v"], "init_lora_weights": False}


@pytest.mark.parametrize("wrap", ["added", "wrapped"])
def test_an_adapter_of_peft_goes_on_working(wrap):
    """It changes the prediction, has gradients alone, and the base weights stay."""
    model = tiny.unet_condition()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    z, t = normal(2, 4, 8, 8), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        plain = xhat.from_diffusers(model, tiny.ddim())(z, t, TEXT).x0
    model.requires_grad_(False)
    config = peft.LoraConfig(**LORA)
    if wrap == "added":
        model.add_adapter(config)
    else:
        model = peft.get_peft_model(model, config)
    denoiser = xhat.from_diffusers(model, tiny.ddim())
    objective = Objective(denoiser, {"denoise": Term(Denoising())})
    learned = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    assert learned
    assert all("lora" in name for name, _ in learned)
    optimizer = torch.optim.SGD([p for _, p in learned], lr=0.1)
    for _ in range(3):
        objective(z, cond=TEXT)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    base = {name.replace("base_model.model.", "").replace("base_layer.", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(base[name], value) for name, value in before.items())
    with torch.no_grad():
        assert not torch.allclose(denoiser(z, t, TEXT).x0, plain, atol=1e-3)
        (model.disable_adapters if wrap == "added" else model.base_model.disable_adapter_layers)()
        torch.testing.assert_close(denoiser(z, t, TEXT).x0, plain, rtol=0, atol=0)


def test_a_compiled_model(rng):
    model = tiny.unet_condition()
    compiled = torch.compile(model, backend="eager")
    z, t = normal(2, 4, 8, 8), torch.tensor([0.3, 0.8])
    ours, plain = (xhat.from_diffusers(m, tiny.ddim())(z, t, TEXT).x0 for m in (compiled, model))
    torch.testing.assert_close(ours, plain)


MODELS = [
    tiny.unet_condition,
    tiny.unet_xl,
    tiny.sd3,
    tiny.flux,
    tiny.dit,
    tiny.pixart,
    tiny.sana,
]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.filterwarnings("ignore:.*also predicts a variance")
def test_nothing_is_changed_on_the_way(make, tmp_path):
    """In, no step, out again: the same file to the last bit, the same config, the same mode."""
    model = make()
    model.save_pretrained(tmp_path / "before")
    flow = "Transformer" in type(model).__name__ and type(model).__name__[:2] in ("SD", "Fl", "Sa")
    denoiser = xhat.from_diffusers(model, tiny.flow(shift=3.0) if flow else tiny.ddim(), size=8)
    Objective(denoiser, {"denoise": Term(Denoising())})
    denoiser.net.model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    back = type(model).from_pretrained(tmp_path / "after").state_dict()
    assert all(torch.equal(back[name], value) for name, value in load_file(tmp_path / "before" / name).items())
    assert not model.training


def test_another_target_is_refused_with_the_way_out():
    with pytest.raises(xhat.errors.RunError) as error:
        xhat.from_diffusers(tiny.unet_condition(), tiny.ddim(), V)
    refused(error, "DDIMScheduler says that the model predicts", "Denoising(space=")
    assert xhat.from_diffusers(tiny.unet_condition(), tiny.ddim(), NOISE).target == NOISE


class Own(nn.Module):
    def forward(self, z, t):
        return z


SCHEDULERS = [
    (diffusers.EDMEulerScheduler(), "EDMEulerScheduler has no table of steps"),
    (tiny.flow(invert_sigmas=True), "inverts its sigmas"),
    (tiny.ddim(prediction_type="epsilon", rescale_betas_zero_snr=True), "cannot give x0 at t = 1"),
]


@pytest.mark.parametrize(("scheduler", "why"), SCHEDULERS, ids=[why[:12] for _, why in SCHEDULERS])
def test_schedulers_without_a_counterpart(scheduler, why):
    with pytest.raises(ValueError, match=why) as error:
        xhat.from_diffusers(tiny.unet_condition(), scheduler)
    refused(error)


def test_a_shift_by_size_needs_a_size():
    with pytest.raises(xhat.errors.RunError) as error:
        xhat.from_diffusers(tiny.flux(), tiny.flow(use_dynamic_shifting=True))
    refused(error, "give size")


def inpainting():
    return tiny.unet_condition(in_channels=9)


def refuse_call(model, scheduler, z, cond, *words):
    denoiser = xhat.from_diffusers(model, scheduler, size=8)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        denoiser(z, torch.full((len(z),), 0.5), cond)
    refused(error, *words)


def test_models_that_are_no_denoisers():
    cases = [
        (Own(), "Own is of no family that xhat knows", "UNet2DConditionModel"),
        (inpainting(), "maps 9 to 4 channels"),
        (tiny.vae(), "AutoencoderKL is of no family"),
    ]
    for model, *words in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            xhat.from_diffusers(model, tiny.ddim())
        refused(error, *words)
    with pytest.raises(ValueError, match="needs 2 outputs per channel"):
        xhat.from_diffusers(tiny.unet_condition(), diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False))
    steered = "a ControlNetModel steers a UNet2DConditionModel: got a"
    with pytest.raises(ValueError, match=f"{steered} AutoencoderKL for a UNet2DConditionModel"):
        xhat.from_diffusers(tiny.unet_condition(), tiny.ddim(), controlnet=tiny.vae())
    with pytest.raises(ValueError, match=f"{steered} ControlNetModel for a DiTTransformer2DModel"):
        xhat.from_diffusers(tiny.dit(4), tiny.ddim(), controlnet=tiny.controlnet(tiny.unet_condition()))


def test_data_that_the_model_does_not_take():
    pooled = {"pooled_projections": normal(2, tiny.TEXT)}
    three = normal(2, 3, 8, 8)
    refuse_call(tiny.unet_condition(), tiny.ddim(), three, TEXT, "takes 4 channels, the data have 3", "autoencoder")
    refuse_call(tiny.unet_condition(), tiny.ddim(), normal(2, 4, 8, 8), {}, "encoder_hidden_states")
    refuse_call(tiny.flux(), tiny.flow(), normal(2, 4, 8, 8), {**TEXT, **pooled}, "must be told its scale", "guidance")
    refuse_call(tiny.flux(False), tiny.flow(), normal(2, 4, 8, 8), {**TEXT, **pooled, "guidance": torch.ones(2)}, "leave")
    refuse_call(tiny.flux(False), tiny.flow(), normal(2, 4, 7, 8), {**TEXT, **pooled}, "even sides")


def test_what_is_not_read_is_said():
    with pytest.warns(UserWarning, match="also predicts a variance, which is not read"):
        xhat.from_diffusers(tiny.pixart(), tiny.ddim())
    with pytest.warns(UserWarning, match="clip_sample"):
        xhat.from_diffusers(tiny.unet_condition(), tiny.ddim(clip_sample=True))
