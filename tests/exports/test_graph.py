"""A denoiser as a graph: in a process without xhat it draws the same samples; what no graph can say is refused in one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import xhat
from helpers import xhat as run_command
from xhat import DDIM, NOISE, Cosine, Denoiser, Discrete, DiT, UNet, V, sample, uniform_times
from xhat.errors import RunError
from xhat.exports.graph import Graph, sampling_of
from xhat.networks.level_posterior import LevelPosterior

STEPS = 5
START = """
import sys, json
from safetensors.numpy import load_file, save_file
graph, given, out = sys.argv[1:]
arrays = load_file(given)
z, cond = arrays.pop("z"), arrays
"""
STEP = """
for i, t in enumerate(about["t"][:-1]):
    x0, noise = both(z, np.full(len(z), t, dtype=np.float32))
    z = np.float32(about["alpha"][i + 1]) * x0 + np.float32(about["sigma"][i + 1]) * noise
save_file({"z": z}, out)
"""
ELSEWHERE = {
    "onnx": f"""{START}
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(graph)
about = json.loads(session.get_modelmeta().custom_metadata_map["xhat"])
def both(z, t):
    return session.run(["x0", "noise"], {{"z": z, "t": t, **cond}})
{STEP}
assert not any(name.partition(".")[0] in ("xhat", "torch") for name in sys.modules)
""",
    "torch": f"""{START}
import numpy as np, torch
files = {{"xhat.json": ""}}
run = torch.export.load(graph, extra_files=files).module()
about = json.loads(files["xhat.json"])
cond = {{name: torch.from_numpy(value) for name, value in cond.items()}}
def both(z, t):
    with torch.no_grad():
        return [x.numpy() for x in run(torch.from_numpy(z), torch.from_numpy(t), cond)]
{STEP}
assert not any(name.partition(".")[0] == "xhat" for name in sys.modules)
""",
}
ENDS = {"onnx": ".onnx", "torch": ".pt2"}


def written(denoiser, axes, cond, to, folder):
    """The file of a denoiser, with the times of a sampler of `STEPS` steps."""
    about = sampling_of(denoiser.schedule, uniform_times(denoiser.schedule, STEPS), denoiser.null)
    graph, path = Graph.of(denoiser, axes, cond), folder / f"graph{ENDS[to]}"
    (graph.write_onnx if to == "onnx" else graph.write_torch)(about, path)
    return path


class OfVectors(nn.Module):
    """A network of somebody's own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, z, t):
        return self.layers(torch.cat([z, t[:, None]], 1))


def denoisers():
    """Of images with classes, of images on a table of steps, of vectors."""
    torch.manual_seed(0)
    own = {"channels": 1, "widths": (16, 16), "blocks": (1, 1)}
    yield "unet", Denoiser(UNet(**own, classes=3), Cosine(), V, null={"label": 3}), (1, 8, 8)
    yield (
        "dit",
        Denoiser(DiT(size=8, classes=3, width=24, depth=2), Discrete.linear_beta(100), NOISE, null={"label": 3}),
        (1, 8, 8),
    )
    yield "vectors", Denoiser(OfVectors(), xhat.Flow(), xhat.FLOW), (2,)
    levels = LevelPosterior(size=8, widths=(8, 16), blocks=(1, 1), features=4)
    yield "levels", Denoiser(levels, Cosine(), LevelPosterior.target), (1, 8, 8)


@pytest.mark.parametrize("to", ELSEWHERE)
@pytest.mark.parametrize("name", [name for name, *_ in denoisers()])
def test_a_process_without_xhat_draws_the_same(name, to, tmp_path):
    denoiser, axes = next(rest for own, *rest in denoisers() if own == name)
    for parameter in denoiser.parameters():  # a new network may say nothing
        nn.init.normal_(parameter, std=0.1)
    denoiser.eval()
    cond = {"label": torch.tensor([0])} if denoiser.null else {}
    path = written(denoiser, axes, cond, to, tmp_path)
    z = torch.randn(4, *axes, generator=torch.Generator().manual_seed(1))
    told = {"label": torch.tensor([0, 1, 2, 3])} if denoiser.null else {}
    save_file({"z": z, **told}, tmp_path / "given.safetensors")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE[to],
            str(path),
            str(tmp_path / "given.safetensors"),
            str(tmp_path / "drawn.safetensors"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours = sample(denoiser, DDIM(), z, uniform_times(denoiser.schedule, STEPS), cond=told or None)
    torch.testing.assert_close(load_file(tmp_path / "drawn.safetensors")["z"], ours, rtol=1e-4, atol=1e-4)
    assert (ours - z).abs().max() > 1e-2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "given.safetensors", "drawn.safetensors"])


class Deciding(nn.Module):
    """Looks at values to decide what to do."""

    def forward(self, z, t):
        return z if bool(z.sum() > 0) else -z


class Counting(nn.Module):
    """Looks at how many samples there are."""

    def forward(self, z, t):
        return torch.cat([2 * part for part in z.split(2)]) if len(z) > 1 else z


class Squeezing(nn.Module):
    """Squeezes axes of which one is no longer than 1, and goes back."""

    def forward(self, z, t):
        return z[:, None].squeeze((1, 2)) * t.reshape(-1, 1)


class InHalf(nn.Module):
    """Convolves in a precision that ONNX Runtime has no convolution of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, z, t):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(z).to(z.dtype)


class Random(nn.Module):
    """Never says the same twice."""

    def forward(self, z, t):
        return z + torch.rand_like(z)


@pytest.mark.parametrize(
    ("net", "why"), [(Deciding(), "cannot follow Deciding"), (Random(), "something else than the network")]
)
@pytest.mark.parametrize("to", ELSEWHERE)
def test_what_a_graph_cannot_say_is_refused(net, why, to, tmp_path):
    with pytest.raises(RunError, match=why) as error:
        written(Denoiser(net, Cosine(), V), (2,), {}, to, tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_why_is_said_in_a_line(tmp_path):
    with pytest.raises(RunError, match="what it does depends on the number of samples"):
        Graph.of(Denoiser(Counting(), Cosine(), V), (2,), {})
    with pytest.raises(RunError, match="a condition is called noise, as an end of the graph is"):
        Graph.of(Denoiser(OfVectors(), Cosine(), V), (2,), {"noise": torch.zeros(1, 2)})
    with pytest.raises(RunError, match="ONNX Runtime does not take what this network does") as error:
        written(Denoiser(InHalf(), Cosine(), V), (1, 8), {}, "onnx", tmp_path)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ELSEWHERE)
def test_a_squeeze_of_what_is_longer_is_none(to, tmp_path):
    written(Denoiser(Squeezing(), Cosine(), V), (2,), {}, to, tmp_path)


@pytest.mark.parametrize("to", ELSEWHERE)
def test_a_file_says_nothing_of_where_it_was_made(to, tmp_path):
    path = written(next(denoisers())[1], (1, 8, 8), {"label": torch.tensor([0])}, to, tmp_path)
    assert str(Path(xhat.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
@pytest.mark.parametrize("to", ELSEWHERE)
def test_a_disk_that_is_full_is_one_line(to, tiny_run, tmp_path):
    """torch would end the process where a write fails within it."""
    out = tmp_path / f"x{ENDS[to]}"
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from xhat.cli import main; sys.exit(main())"
    )
    call = [sys.executable, "-c", program, "export", str(tiny_run), "--to", to, str(out)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip().count("\n")) == (2, 0), done.stderr
    assert f"cannot read or write {out}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_large_weights_are_a_second_file_that_replaces_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    code, said, _ = run_command("export", tiny_run, "--to", "onnx", tmp_path / "x.onnx", capsys=capsys)
    assert code == 0
    assert f"a graph in {tmp_path / 'x.onnx'} and {tmp_path / 'x.onnx.data'}" in said
    (tmp_path / "x.onnx").unlink()
    code, _, err = run_command("export", tiny_run, "--to", "onnx", tmp_path / "x.onnx", capsys=capsys)
    assert (code, (tmp_path / "x.onnx").exists()) == (2, False)
    assert "x.onnx.data exists already" in err


def test_times_below_zero_are_written_as_zero():
    """EDM's last time has no noise at all: -inf on its axis, which JSON has no word for."""
    schedule = xhat.schedules.LinearLogSNR()
    times = xhat.spacings.karras_times(schedule, 5)
    found = sampling_of(schedule, times, None)
    json.dumps(found, allow_nan=False)
    assert (float(times[-1]), found["t"][-1], found["sigma"][-1]) == (-math.inf, 0.0, 0.0)


def test_the_numbers_of_a_sampler():
    schedule = Cosine()
    found = json.loads(
        json.dumps(
            sampling_of(schedule, uniform_times(schedule, 3), {"label": 7, "kind": torch.tensor(3), "states": torch.zeros(2)})
        )
    )
    assert found["null"] == {"label": 7, "kind": 3}
    assert (len(found["t"]), found["t"][0], found["prior_std"]) == (4, 1.0, pytest.approx(1.0))
    for t, alpha, sigma in zip(found["t"], found["alpha"], found["sigma"], strict=True):
        at = torch.tensor(t, dtype=torch.float64)
        assert (alpha, sigma) == (pytest.approx(float(schedule.alpha(at))), pytest.approx(float(schedule.sigma(at))))


def test_the_command(tiny_run, tmp_path, capsys):
    for to, end in ENDS.items():
        out = tmp_path / f"digits{end}"
        code, said, _ = run_command("export", tiny_run, "--to", to, out, capsys=capsys)
        assert (code, out.is_file()) == (0, True)
        assert said.startswith(f"a graph in {out}, with the")
        assert run_command("export", tiny_run, "--to", to, out, capsys=capsys)[0] == 2
    about = {"xhat.json": ""}
    torch.export.load(tmp_path / "digits.pt2", extra_files=about)
    assert json.loads(about["xhat.json"])["trained"]["sample"] == [1, 8, 8]
    for arguments, why in (
        ((tiny_run, "--to", "onnx", tmp_path / "digits.pt2x"), "the file must end in .onnx"),
        ((tiny_run, "--to", "torch", tmp_path / "a" / "b.pt2"), "the folder"),
        ((tiny_run, "--to", "tensorflow", tmp_path / "x"), "to"),
    ):
        code, _, err = run_command("export", *arguments, capsys=capsys)
        assert (code, err.strip().count("\n")) == (2, 0)
        assert why in err


def test_without_the_libraries_it_says_what_to_install(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run_command("export", tiny_run, "--to", "onnx", tmp_path / "x.onnx", capsys=capsys)
    assert code == 2
    assert "pip install 'xhat[onnx]'" in err
    assert list(tmp_path.iterdir()) == []
