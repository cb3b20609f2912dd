"""What is measured of a run, against computations of its own; and that it is measured once."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import TINY, write_digits
from xhat.commands.train import read
from xhat.config.build import build_denoiser, build_penalty, build_sampling
from xhat.data.images import to_float
from xhat.data.parts import load_parts
from xhat.data.shape import DataShape
from xhat.errors import RunError
from xhat.evaluation.denoising import denoising_error
from xhat.evaluation.fid import distance, features_of
from xhat.evaluation.floor import floor_errors
from xhat.networks.digits import MNISTFeatures
from xhat.networks.unet import UNet
from xhat.report import measured as module
from xhat.report.contents import Line
from xhat.report.measured import FOLDER, How, Measured, measured
from xhat.runs.load import load
from xhat.runs.weights import save_weights
from xhat.sampling.generate import trajectory

QUICK = How(samples=8, images=16, bound_images=8, logsnr=(-4.0, -2.0, 0.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """400 images, of which 20 are held out."""
    return write_digits(tmp_path_factory.mktemp("data") / "images.npz", 400)


def untrained(folder, data, *options, size=8, classes=None, seed=0):
    """A run folder with random weights: what is measured does not ask how they came about."""
    own = ("--labels", str(classes is not None).lower(), *options)
    config = read(["mnist", "--run", str(folder), "--data", str(data), *TINY, *own])[0]
    torch.manual_seed(seed)
    shape = DataShape(1, size, classes)
    denoiser = build_denoiser(config, shape)
    for parameter in denoiser.net.parameters():  # some start at zero, and would hide what depends on them
        parameter.data += 0.02 * torch.randn_like(parameter)
    folder.mkdir()
    save_weights(folder / "ema.safetensors", denoiser.state_dict(), config, shape, 5)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    return untrained(tmp_path_factory.mktemp("runs") / "run", images)


@pytest.fixture(scope="module")
def found(run):
    return measured(run, QUICK)


def unmeasured(run, folder):
    """A copy of a run, without what was measured of it."""
    return shutil.copytree(run, folder / "copy", ignore=shutil.ignore_patterns(FOLDER))


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the batches that networks are called on."""
    sizes, forward = [], UNet.forward

    def counting(self, z, *args, **kwargs):
        sizes.append(len(z))
        return forward(self, z, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", counting)
    return sizes


def test_a_run_is_measured_once(run, found, calls, tmp_path):
    again = measured(run, QUICK)
    assert calls == []
    assert again == found
    copy = unmeasured(run, tmp_path)
    assert measured(copy, QUICK) == found  # the same anew: seeds are fixed
    assert calls
    assert (copy / FOLDER / "samples.png").exists()
    assert (copy / FOLDER / "trajectory.png").exists()


@pytest.fixture
def stub(monkeypatch):
    """`measured` with measurements that are numbered."""
    count = []

    def _measure(run, how):
        count.append(how)
        (run / FOLDER).mkdir(exist_ok=True)
        return Measured(
            1, {"bits": float(len(count)), "bits_se": math.inf}, {}, {"bound": Line([1.0], [2.0])}, [1.0], [], False
        )

    monkeypatch.setattr(module, "_measure", _measure)
    return count


def test_another_how_or_other_weights_are_measured_anew(run, stub, tmp_path):
    copy = unmeasured(run, tmp_path)
    hows = [QUICK, How(samples=9), How(images=9), How(bound_images=9), How(penalties={}), How(logsnr=(0.0, 1.0))]
    assert [measured(copy, how).numbers["bits"] for how in hows] == [1, 2, 3, 4, 5, 6]
    assert measured(copy, hows[-1]) == Measured(
        1, {"bits": 6.0, "bits_se": math.inf}, {}, {"bound": Line([1.0], [2.0])}, [1.0], [], False
    )
    assert len(stub) == 6
    (copy / "ema.safetensors").write_bytes((copy / "ema.safetensors").read_bytes()[:-1] + b"x")
    assert measured(copy, hows[-1]).numbers["bits"] == 7


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"key": 1}', "\udcff", "no found", "no lines", "other fields"])
def test_a_damaged_file_is_measured_anew(damage, run, stub, tmp_path):
    copy = unmeasured(run, tmp_path)
    before = measured(copy, QUICK)
    path = copy / FOLDER / "measured.json"
    stored = json.loads(path.read_text())
    inside = {
        "no found": {**stored, "found": None},
        "no lines": {**stored, "found": {**stored["found"], "lines": 3}},
        "other fields": {**stored, "found": {**stored["found"], "of_a_later_version": 3}},
    }
    path.write_bytes((json.dumps(inside[damage]) if damage in inside else damage).encode(errors="surrogateescape"))
    after = measured(copy, QUICK)
    assert (before.numbers["bits"], after.numbers["bits"]) == (1, 2)
    assert measured(copy, QUICK) == after


def test_without_weights_nothing_is_written(run, tmp_path):
    for text in (None, b"weights"):
        folder = tmp_path / str(text)
        folder.mkdir()
        if text:
            (folder / "ema.safetensors").write_bytes(text)
        with pytest.raises(RunError, match="damaged" if text else "train first"):
            measured(folder, QUICK)
        assert not (folder / FOLDER).exists()


def integral(errors):
    """½ ∫ error dSNR / ln 2 over QUICK's levels, with the trapezoidal rule in logsnr written out: errors (L, ...)."""
    density = [math.exp(level) / (2 * math.log(2)) * np.asarray(e) for level, e in zip(QUICK.logsnr, errors, strict=True)]
    return sum(2.0 * (a + b) / 2 for a, b in itertools.pairwise(density))


def test_the_error_and_what_is_above_the_floor(run, found, images):
    """Held-out images, paired with the floor of what was trained on."""
    trained = load(run)
    training, held_out = load_parts(str(images), 8, 0.05)
    assert (len(training), len(held_out)) == (380, 20)
    x0 = to_float(held_out.pixels[:16])
    error = denoising_error(trained.denoiser, x0, None, QUICK.logsnr)
    assert found.numbers["denoising"] == pytest.approx(error.bits_per_dim, rel=1e-6)
    assert found.numbers["denoising_se"] == pytest.approx(error.bits_per_dim_se, rel=1e-6)
    assert found.lines["x0_error"].y == pytest.approx(error.x0_error, rel=1e-6)
    floor = floor_errors(to_float(training.pixels[:]), x0, logsnr=QUICK.logsnr)
    assert found.lines["floor_lower"].y == pytest.approx(floor.lower.mean(1).tolist())
    assert found.lines["floor_upper"].y == pytest.approx(floor.upper.mean(1).tolist())
    by_hand = integral(found.lines["x0_error"].y) - integral(floor.lower.mean(1).tolist())
    assert found.numbers["excess"] == pytest.approx(by_hand, rel=1e-6)
    assert found.numbers["excess"] < found.numbers["denoising"] - 1e-3
    each = [denoising_error(trained.denoiser, x0, None, [level, 4.5]).x0_error[0] for level in QUICK.logsnr]
    assert found.lines["x0_error"].y == pytest.approx(each, rel=1e-5)
    assert (found.step, found.problems, list(found.lines["x0_error"].x)) == (5, [], list(QUICK.logsnr))


def test_models_that_are_told_the_label_have_another_floor(images, found, tmp_path):
    conditional = measured(untrained(tmp_path / "run", images, classes=4), QUICK)
    training, held_out = load_parts(str(images), 8, 0.05)
    x0 = to_float(held_out.pixels[:16])
    floor = floor_errors(to_float(training.pixels[:]), x0, training.labels, held_out.labels[:16], QUICK.logsnr)
    assert conditional.lines["floor_lower"].y == pytest.approx(floor.lower.mean(1).tolist())
    assert conditional.lines["floor_upper"].y == pytest.approx(floor.upper.mean(1).tolist())
    assert conditional.lines["floor_upper"].y != pytest.approx(found.lines["floor_upper"].y, rel=1e-3)
    error = denoising_error(load(tmp_path / "run").denoiser, x0, {"label": held_out.labels[:16]}, QUICK.logsnr)
    assert conditional.numbers["denoising"] == pytest.approx(error.bits_per_dim, rel=1e-6)


def test_few_images_have_no_floor(tmp_path):
    data = write_digits(tmp_path / "few.npz", 64)
    few = measured(untrained(tmp_path / "run", data), QUICK)
    (problem,) = few.problems
    assert "too few images to hold any out" in problem
    assert not {"excess", "excess_se"} & set(few.numbers)
    assert not {"floor_lower", "floor_upper"} & set(few.lines)
    x0 = to_float(load_parts(str(data), 8, 0.05)[0].pixels[:16])
    error = denoising_error(load(tmp_path / "run").denoiser, x0, None, QUICK.logsnr)
    assert few.numbers["denoising"] == pytest.approx(error.bits_per_dim, rel=1e-6)


def test_a_label_that_no_training_image_has_leaves_no_floor(tmp_path):
    """Each image has a label of its own: the error is known, the floor given the label is not."""
    data = tmp_path / "own.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8), labels=np.arange(400))
    found = measured(untrained(tmp_path / "run", data, classes=400), QUICK)
    (problem,) = found.problems
    assert problem.startswith("no floor: no image of the data has the label")
    assert "excess" not in found.numbers
    assert found.numbers["denoising"] > 0


@pytest.mark.filterwarnings("ignore:std")  # of a single image
def test_what_a_schedule_does_not_have_is_a_problem_and_no_end(images, tmp_path):
    """A schedule that spans none of the levels; a bound that is refused."""
    narrow = untrained(tmp_path / "narrow", images, "--schedule", "linear_logsnr(-0.3, 0.3)")
    found = measured(narrow, QUICK)
    (problem,) = found.problems
    assert problem.startswith("no error by noise level: the schedule spans logsnr -0.3 to 0.3")
    assert found.numbers["bits"] > 0
    assert "total_variation" in found.numbers
    assert "denoising" not in found.numbers
    short = measured(untrained(tmp_path / "short", images, "--schedule", "linear_logsnr(-3, 3)"), QUICK)
    assert short.lines["x0_error"].x == short.lines["floor_lower"].x == [-2, 0, 2]
    lone = tmp_path / "lone.npz"
    np.savez(lone, images=np.zeros((1, 8, 8), np.uint8))
    found = measured(untrained(tmp_path / "lone", lone, "--schedule", "ve"), QUICK)
    assert [p.split(":")[0] for p in found.problems] == ["too few images to hold any out", "no bound"]
    assert found.numbers["denoising"] > 0
    assert "bits" not in found.numbers


def test_penalties_of_samples_and_of_real_images(run, images, tmp_path):
    """Of 8-bit images in [-1, 1]: the samples drawn as the config says, and the held-out ones."""
    how = How(samples=8, images=16, bound_images=2, penalties={"tv": "total_variation", "own": "image_loss(total_variation)"})
    found = measured(unmeasured(run, tmp_path), how)

    def by_hand(pixels):
        x = np.asarray(pixels, np.float64) / 127.5 - 1
        return np.abs(np.diff(x, axis=2)).sum((2, 3)).mean() / 64 + np.abs(np.diff(x, axis=3)).sum((2, 3)).mean() / 64

    def as_defined(pixels):
        return float(build_penalty("total_variation")(to_float(pixels)).mean())

    trained = load(run)
    samples, _ = build_sampling(trained.config.sampling, trained.denoiser.schedule).generate(trained.denoiser, trained.shape, 8)
    real = load_parts(str(images), 8, 0.05)[1].pixels
    assert found.real == pytest.approx({"tv": as_defined(real), "own": as_defined(real)})
    assert found.numbers["tv"] == found.numbers["own"] == pytest.approx(as_defined(samples))
    scale = as_defined(real) / by_hand(real)  # the mean over 56 differences or over 64 pixels is the penalty's business
    assert as_defined(samples) == pytest.approx(scale * by_hand(samples), rel=1e-5)


def test_quality_is_measured_where_the_shipped_network_can_read(tmp_path):
    data = tmp_path / "digits.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8))
    run = untrained(tmp_path / "run", data, size=28)
    found = measured(run, How(samples=8, images=4, bound_images=2, logsnr=(0.0, 1.0)))
    network, trained = MNISTFeatures.trained(), load(run)
    samples, _ = build_sampling(trained.config.sampling, trained.denoiser.schedule).generate(trained.denoiser, trained.shape, 8)
    real = load_parts(str(data), 28, 0.05)[0].pixels
    far = distance(features_of(network, samples), features_of(network, real), "mnist")
    assert (found.numbers["fid"], found.numbers["kid"]) == pytest.approx((far.fid, far.kid), rel=1e-4)
    assert 0 <= found.numbers["read"] <= 1


def test_times_of_a_step(run, stub, tmp_path):
    """Median of 16 images per step at 100, 200 and 400 images/s; a line of 0 images/s, which is rounded, says nothing."""
    rows = [
        {"step": i + 1, "images": 16 * (i + 1), "seconds": 30.0 * (i + 1), "images_per_second": speed}
        for i, speed in enumerate((100.0, 400.0, 0.0, 200.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert module._times(tmp_path) == pytest.approx({"milliseconds": 80.0, "minutes": 2.0})
    assert module._times(run) == {}


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddpm"])
def test_a_trajectory_ends_in_the_sample(sampler, run):
    """From x0_hat of pure noise, at even steps of the chain, to what `generate` gives."""
    trained = load(run)
    how = replace(trained.config.sampling, sampler=sampler, steps=10)
    seen, times = trajectory(trained.denoiser, build_sampling(how, trained.denoiser.schedule), trained.shape, 5, columns=6)
    drawn, _ = build_sampling(how, trained.denoiser.schedule).generate(trained.denoiser, trained.shape, 50)
    assert times == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert seen.shape == (5, 6, 1, 8, 8)
    assert (seen[:, -1].int() - drawn[:5].int()).abs().max() <= 1  # one unit of rounding: sums in another batch size
    assert (seen[:, 0].int() - drawn[:5].int()).abs().max() > 1
    two = build_sampling(replace(how, steps=2), trained.denoiser.schedule)
    few, times = trajectory(trained.denoiser, two, trained.shape, 1, columns=6)
    assert (few.shape[1], times) == (3, pytest.approx([1.0, 0.5, 0.0]))
