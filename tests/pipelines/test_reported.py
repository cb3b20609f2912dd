"""What real pipelines have and do, as a review found it: other schedulers, moved parts, half precision, compiled models."""

import copy

import diffusers
import peft
import pytest
import tiny
import torch
from torch import nn

import xhat
from xhat import Cosine, Denoiser, Denoising, FullChain, Guided, ImageLoss, Objective, Term, ToReference, TrajectoryKL, V
from xhat.diffusion.weightings import high_snr, product
from xhat.errors import RunError
from xhat.losses.decode import Decode
from xhat.losses.penalties import latent_perceptual
from xhat.losses.reference import _require_full
from xhat.sampling.differentiate import AllSteps
from xhat.sampling.spacings import scheduler_times

PROMPTS = ["a red dog", "two cats on a mat."]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


TABLES = ["DDPM", "DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "UniPCMultistep"]
TABLES += ["DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "KDPM2Discrete"]


@pytest.mark.parametrize("name", TABLES)
def test_each_scheduler_of_a_table_says_what_the_model_was_trained_on(name):
    """At the defaults of its class: noise, by the same table."""
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    if scheduler.config.get("clip_sample"):
        scheduler.register_to_config(clip_sample=False)
    denoiser = xhat.from_diffusers(tiny.unet_condition(), scheduler)
    t = torch.tensor([1, 500, 1000]) / 1000
    assert denoiser.target == xhat.NOISE
    close(denoiser.schedule.alpha(t).square(), scheduler.alphas_cumprod[[0, 499, 999]])


def test_times_of_schedulers():
    schedule = xhat.Discrete.from_diffusers(tiny.ddim())
    for scheduler in (diffusers.PNDMScheduler(), diffusers.HeunDiscreteScheduler()):
        scheduler.set_timesteps(4)
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__} comes to a timestep twice"):
            scheduler_times(schedule, scheduler)
    ends = {}
    for name, more in (("zero", {}), ("sigma_min", {"final_sigmas_type": "sigma_min"})):
        scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **more)
        scheduler.set_timesteps(4)
        times = scheduler_times(schedule, scheduler)
        close(times[:4], (scheduler.timesteps.double() + 1) / 1000)
        ends[name] = float(times[-1])
    assert ends == {"zero": 0, "sigma_min": 0.001}
    scheduler = tiny.ddim(set_alpha_to_one=False, timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(4)
    assert scheduler_times(schedule, scheduler).tolist() == [0.751, 0.501, 0.251, 0.001]


def test_pixart_is_told_the_size():
    """The config may leave it to the model: sample_size 128 means that it is."""
    own = diffusers.PixArtTransformer2DModel(
        sample_size=128,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=6,
        caption_channels=tiny.TEXT,
        cross_attention_dim=48,
    )
    assert own.config.use_additional_conditions is None
    parts = {"text_encoder": tiny.t5_text(), "tokenizer": tiny.word_tokenizer(), "vae": tiny.vae()}
    pipeline = diffusers.PixArtSigmaPipeline(transformer=own, scheduler=tiny.ddim(), **parts)
    p = xhat.pretrained(pipeline, size=8)
    cond = p.told(PROMPTS, pixels=(16, 32))
    assert cond["resolution"].tolist() == [[16, 32]] * 2
    assert cond["aspect_ratio"].tolist() == [[0.5]] * 2
    z, t = normal(2, 4, 8, 16), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        assert p.denoiser(z, t, cond).x0.shape == z.shape
        with pytest.raises(ValueError, match="is told the size of the images: add resolution"):
            p.denoiser(z, t, {name: x for name, x in cond.items() if "attention" in name or "states" in name})


def test_prompts_are_encoded_where_the_text_encoder_is():
    """Training moves the model alone."""
    p = xhat.pretrained(tiny.stable_diffusion())
    p.denoiser.to("meta")
    assert {name: x.device.type for name, x in p.told(PROMPTS).items()} == {"encoder_hidden_states": "meta"}
    x0, _ = p.encode(normal(2, 3, 16, 16).clamp(-1, 1), PROMPTS)
    assert x0.device.type == "meta"


def test_the_pipeline_itself_goes_on_in_half_precision():
    pipeline = tiny.stable_diffusion().to(torch.bfloat16)
    xhat.pretrained(pipeline)
    assert pipeline.vae.dtype == torch.bfloat16
    own = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    assert pipeline(PROMPTS, **own).images.shape == (2, 3, 16, 16)


def test_an_autoencoder_that_overflows_is_called_in_float32():
    """With float32 copies of its float16 weights, gradients too; itself it stays what it is."""
    half, images = tiny.vae().to(torch.float16), normal(2, 3, 16, 16).clamp(-1, 1)
    half.register_to_config(force_upcast=True)
    wide = copy.deepcopy(half).float()
    ours, theirs = (xhat.pretrained(tiny.stable_diffusion(vae=vae)) for vae in (half, wide))
    close(ours.latents(images), theirs.latents(images), 1e-6)
    assert half.dtype == torch.float16
    latents = normal(2, 4, 8, 8).requires_grad_()
    grads = []
    for p in (ours, theirs):
        (grad,) = torch.autograd.grad(Decode(p.pipeline.vae)(latents).square().mean(), latents)
        grads.append(grad)
    close(*grads, 1e-6)


def test_pixels_and_features_are_precise_under_autocast():
    vae, latents, x0 = tiny.vae(), normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    for call in (lambda: Decode(vae)(latents), lambda: latent_perceptual(vae, 1)(latents, x0)):
        plain = call()
        with torch.autocast("cpu", torch.bfloat16):
            close(call(), plain, 1e-6)


@pytest.mark.parametrize("how", ["compiled", "named", "averaged", "whole"])
def test_what_is_saved_is_what_was_trained(how, tmp_path):
    pipeline = tiny.stable_diffusion()
    if how == "compiled":
        pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    p = xhat.pretrained(pipeline, lora=None if how == "whole" else peft.LoraConfig(r=2, init_lora_weights=False))
    if how == "named":
        p.save(tmp_path / "first")
        fresh = tiny.stable_diffusion()
        fresh.load_lora_weights(tmp_path / "first")
        p = xhat.pretrained(fresh)
        assert all(x.requires_grad == ("lora" in name) for name, x in p.model.named_parameters())
    trained = p.denoiser
    if how in ("averaged", "whole"):
        trained = copy.deepcopy(p.denoiser)
        with torch.no_grad():
            for x in trained.net.model.parameters():
                x.add_(0.01 if how == "whole" or x.requires_grad else 0)
    z, t, cond = normal(2, 4, 8, 8), torch.tensor([0.3, 0.8]), p.told(PROMPTS)
    with torch.no_grad():
        wanted = trained(z, t, cond).x0
        p.save(tmp_path / "saved", trained)
        if how == "whole":
            back = xhat.pretrained(tmp_path / "saved")
        else:
            fresh = tiny.stable_diffusion()
            fresh.load_lora_weights(tmp_path / "saved")
            back = xhat.pretrained(fresh)
        close(back.denoiser(z, t, cond).x0, wanted, 1e-5)


def test_a_refusal_leaves_the_pipeline_as_it_was():
    pipeline = tiny.stable_diffusion()
    with pytest.raises(RunError, match="fits no layer"):
        xhat.pretrained(pipeline, lora=peft.LoraConfig(target_modules=["nope"]))
    assert all(x.requires_grad for x in pipeline.unet.parameters())
    assert any(x.requires_grad for x in xhat.pretrained(pipeline, lora=2).model.parameters())
    with pytest.raises(RunError, match="a rank such as 16"):
        xhat.pretrained(tiny.stable_diffusion(), lora=True)


def test_parts_that_a_pipeline_does_without(tmp_path):
    """Stable Diffusion 3 without T5 is read and told prompts; FLUX without T5 is told none, and says which it lacks."""
    pipeline = tiny.stable_diffusion_3()
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "sd3")
    p = xhat.pretrained(tmp_path / "sd3")
    assert set(p.told(PROMPTS)) == {"encoder_hidden_states", "pooled_projections"}
    pipeline = tiny.flux_1()
    pipeline.register_modules(text_encoder_2=None)
    p = xhat.pretrained(pipeline, size=8)
    assert p.null is None
    with pytest.raises(RunError, match="has no text_encoder_2"):
        p.told(PROMPTS)


def test_a_text_encoder_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    file = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "mlp.fc1.weight" in name)
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"text_encoder do not fit its config\.json: a CLIPTextModel lacks"):
        xhat.pretrained(tmp_path / "sd")


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.last = nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 2)

    def forward(self, z, t):
        return self.last(self.drop(torch.tanh(self.first(torch.cat([z, t.to(z).unsqueeze(1)], 1)))))


@pytest.mark.parametrize("how", ["dropout", "perturbed", "along", "trajectories"])
def test_the_same_model_is_at_distance_nothing(how):
    """Whatever the two calls would drop, and whatever the shared call was shown."""
    own = Denoiser(Net(0.0 if how == "perturbed" else 0.5), Cosine(), V)
    other = copy.deepcopy(own)
    chain = FullChain(xhat.DDIM(1.0), steps=3, differentiate=AllSteps())
    losses = {"along": ToReference(other, along=chain), "trajectories": TrajectoryKL(other, chain)}
    objective = Objective(
        own, {"near": Term(losses.get(how, ToReference(other)))}, input_perturbation=0.1 * (how == "perturbed")
    )
    out = objective.train()(normal(4, 2))
    assert float(out["near"]) == 0
    out["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in own.parameters())
    assert own.net.training


def test_a_reference_without_adapters_needs_a_base_that_stays():
    own = Denoiser(Net(), Cosine(), V)
    own.net = peft.get_peft_model(own.net, peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["last"]))
    before = own.net.base_model.model.last.original_module.weight.clone()
    objective = Objective(own, {"near": Term(ToReference())})
    with torch.no_grad():
        own.net.base_model.model.last.modules_to_save["default"].weight += 1
        draw = objective.draw(normal(4, 2), step=0)
        base = Denoiser(Net(), Cosine(), V)
        wanted = (own(draw.z, draw.t).noise - base(draw.z, draw.t).noise).square().mean(1)
        close(objective.per_image("near", draw), draw.importance * wanted)
    assert torch.equal(own.net.base_model.model.last.original_module.weight, before)


def test_a_learning_part_that_is_no_adapter_is_refused():
    own = Denoiser(Net(), Cosine(), V)
    own.net = peft.get_peft_model(own.net, peft.LoraConfig(r=2, target_modules=["first"]))
    own.net.base_model.model.last.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"last\.weight learns and is no adapter"):
        Objective(own, {"near": Term(ToReference())})(normal(4, 2))


def test_guidance_that_would_do_nothing_is_refused():
    class Told(nn.Module):
        def forward(self, z, t, label):
            return z * torch.as_tensor(label).reshape(-1, *[1] * (z.ndim - 1) if torch.as_tensor(label).ndim else ())

    guided = Guided(Denoiser(Told(), Cosine(), V), 2.0, 7)
    for label in (2, torch.tensor(2), torch.tensor([2])):
        with pytest.raises(ValueError, match="guidance blanks label row by row, and it has no row for each of the 3 samples"):
            guided(normal(3, 2), torch.rand(3), {"label": label})


def test_a_gate_inside_of_a_product_knows_the_resolution():
    gate = product(high_snr(), high_snr(2.0))
    logsnr = torch.tensor([0.0], dtype=torch.float64)
    own = high_snr().of_size((3, 256, 256))(logsnr, Cosine()) * high_snr(2.0)(logsnr, Cosine())
    close(gate.of_size((3, 256, 256))(logsnr, Cosine()), own)
    x0 = normal(2, 3, 64, 64)
    t = torch.tensor([0.4, 0.6])
    denoiser = Denoiser(nn.Identity(), Cosine(), V)
    denoiser.net.forward = lambda z, t: z
    loss = ImageLoss(lambda x: x.flatten(1).mean(1), weighting=gate, expect=None)
    draw = Objective(denoiser, {"a": Term(Denoising())}).draw_at(x0, t, step=0)
    found = loss.scale(denoiser, draw)
    close(found, gate.of_size((3, 64, 64))(denoiser.schedule.logsnr(t), denoiser.schedule))


def test_a_chain_without_samples_has_its_range_checked():
    denoiser = Denoiser(Net(), Cosine(), V)
    loss = ImageLoss(lambda x: x.mean(1), FullChain(steps=2), decode=lambda z: 200 + 0 * z)
    with pytest.raises(ValueError, match="decode returns images in"):
        Objective(denoiser, {"a": Term(loss)})(shape=(3, 2))
    with pytest.raises(ValueError, match=r"along is a chain from pure noise, FullChain\(...\), got Rollout"):
        _require_full(xhat.Rollout(xhat.DDIM(1.0), differentiate=AllSteps()))


def test_others_come_through_fit(tmp_path):
    """Prior images and their conditions, a mapping, from tensors: through batches, checks and the device."""

    class Told(Net):
        def forward(self, z, t, label):
            return super().forward(z, t) + 0.1 * label.to(z)[:, None]

    extra = {"prior": normal(16, 2, seed=3), "prior_cond": {"label": torch.arange(16)}}
    data = xhat.data.from_tensors(normal(16, 2), cond={"label": torch.zeros(16).long()}, extra=extra, classes=20)
    other = {**extra, "prior_cond": {"label": torch.arange(16) + 1}}
    again = xhat.data.from_tensors(normal(16, 2), cond={"label": torch.zeros(16).long()}, extra=other, classes=20)
    assert data.fingerprint() != again.fingerprint()
    terms = {"denoise": Term(Denoising()), "prior": Term(xhat.OnOthers(Denoising()))}
    objective = Objective(Denoiser(Told(), Cosine(), V), terms)
    fitted = xhat.fit(objective, data, tmp_path / "run", max_steps=2, batch_size=4, eval_every=0, compile="off")
    assert fitted.numbers["terms"]["prior"] > 0


def test_half_precision_that_learns_is_said(tmp_path):
    objective = Objective(Denoiser(Net().to(torch.bfloat16), Cosine(), V), {"denoise": Term(Denoising())})
    objective.denoiser.net.forward = lambda z, t: z.to(torch.bfloat16) * objective.denoiser.net.first.weight.mean()
    with pytest.warns(
        UserWarning, match=r"what learns is in torch.bfloat16 \(denoiser.net.first.weight\), which loses small steps"
    ):
        xhat.fit(objective, normal(16, 2), tmp_path / "run", max_steps=1, batch_size=4, eval_every=0, compile="off")
