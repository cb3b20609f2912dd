"""The models of pipelines as graphs: ONNX Runtime says what they say, with an adapter and without."""

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from test_commands_of_pipelines import SMALL, write_pictures

import xhat
from helpers import xhat as run_command
from xhat.exports.graph import Graph

PIPELINES = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux_1,
    "pixart": tiny.pixart_sigma,  # it squeezes an axis of 16
    "sana": tiny.sana_1,  # it divides by a sum that may be 0, plus 1e-15
    "dit": tiny.dit_xl,
}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 2], ids=["whole", "lora"])
@pytest.mark.parametrize("name", PIPELINES)
def test_each_family_as_onnx(name, lora, tmp_path):
    made = xhat.pretrained(PIPELINES[name](), lora)
    for number, (key, weight) in enumerate(made.denoiser.named_parameters()):
        if "lora_B" in key:  # an adapter is nothing at first
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(number))
    axes, prompt = (4, 8, 8), "class 1" if name == "dit" else "a red cloth"
    graph = Graph.of(made.denoiser, axes, {**made.without_prompt(), **made.sizes(1)})
    graph.write_onnx({}, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    z, t = torch.randn(5, *axes, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 5)
    cond = {name: value.repeat_interleave(5, 0) for name, value in made.told([prompt], pixels=made.pixels).items()}
    names = {i.name for i in session.get_inputs()}
    found = session.run(["x0", "noise"], {k: v.numpy() for k, v in {"z": z, "t": t, **cond}.items() if k in names})
    with torch.no_grad():
        prediction = made.denoiser(z, t, cond)
    for own, other in ((prediction.x0, found[0]), (prediction.noise, found[1])):
        assert np.abs(own.numpy() - other).max() < 1e-5 * (1 + float(own.abs().max()))


def test_a_run_of_a_pipeline_as_torch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XHAT_CACHE", str(tmp_path / "cache"))
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    write_pictures(tmp_path / "pics", 8)
    own = ("--init", tmp_path / "sd", "--lora", 2, "--data", tmp_path / "pics", "--run", tmp_path / "run", "--max_steps", 1)
    assert run_command("train", *own, *SMALL)[0] == 0
    code, said, err = run_command("export", tmp_path / "run", "--to", "torch", tmp_path / "net.pt2", capsys=capsys)
    assert code == 0
    assert "a graph in" in said
    assert "latents" in err
    trained = xhat.load(tmp_path / "run")
    cond = trained.denoiser.net.home[0].told(["a red cloth"], pixels=(16, 16))
    z, t = torch.randn(1, *trained.shape.sample, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4])
    with torch.no_grad():
        x0, _ = torch.export.load(tmp_path / "net.pt2").module()(z, t, cond)
        torch.testing.assert_close(x0, trained.denoiser(z, t, cond).x0, rtol=1e-5, atol=1e-5)
