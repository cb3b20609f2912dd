"""xhat.fit: objects of any kind, with all that a run of `xhat train` has; to the bit the same run."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import xhat
from helpers import TINY, write_digits
from helpers import xhat as command
from xhat.config.data import build_data
from xhat.config.options import OptimizerConfig
from xhat.config.parsing import options_of
from xhat.data import Batch, WithNull, from_tensors
from xhat.errors import ConfigError, DataError, RunError
from xhat.runs.lock import reserved
from xhat.runs.metrics import read_metrics

NETWORK = "unet(widths=(8, 8), blocks=(1, 1), embedding=16)"
QUICK = {"batch_size": 8, "compile": "off", "log_every": 2, "checkpoint_every": 3, "sampling": {"steps": 2}}


class Small(nn.Module):
    """A few numbers of any shape, with the time beside."""

    def __init__(self, *sample):
        super().__init__()
        size = int(torch.tensor(sample).prod())
        self.body = nn.Sequential(nn.Linear(size + 1, 16), nn.SiLU(), nn.Linear(16, size))

    def forward(self, z, t, theta=None):
        shift = 0 if theta is None else theta.reshape(-1, *(1,) * (z.ndim - 1))
        return (self.body(torch.cat([z.flatten(1), t[:, None]], 1)).view_as(z)) + shift


def objective(*sample, terms=None, seed=0):
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(Small(*sample), xhat.Cosine(), xhat.V)
    return xhat.Objective(denoiser, terms or {"denoise": xhat.Term(xhat.Denoising(xhat.V))}, seed=seed)


def weights(run):
    return load_file(Path(run) / "ema.safetensors")


def same(a, b):
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rows(run):
    return list(read_metrics(Path(run)))


def numbers(run):
    """What of the metrics does not tell the time."""
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows(run)]


@pytest.mark.parametrize("labels", ["true", "false"])
def test_objects_and_the_config_of_the_same_choices_are_the_same_bits(tmp_path, labels):
    data = write_digits(tmp_path / "digits.npz", 400)
    loss = ("--terms.denoise.loss", "denoising(space=x0, weighting=min_snr(5))")
    choices = ("--labels", labels, "--times", "uniform", *loss)
    smooth = ("--terms.smooth.loss", "image_loss(total_variation)", "--terms.smooth.weight", 0.1)
    options = ("--data", data, "--max_steps", 6, *choices, *smooth, *TINY)
    assert command("train", "mnist", "--run", tmp_path / "config", *options)[0] == 0
    config = xhat.load(tmp_path / "config").config
    own = build_data(config)
    torch.manual_seed(config.seed)
    net = xhat.UNet(channels=1, widths=(8, 8), blocks=(1, 1), embedding=16, classes=own.shape.classes)
    terms = {
        "denoise": xhat.Term(xhat.Denoising(xhat.X0, xhat.min_snr(5))),
        "smooth": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=0.1),
    }
    built = xhat.Objective(xhat.Denoiser(net, xhat.Cosine(), xhat.V), terms, xhat.times.Uniform())
    how = xhat.Options(**{f.name: getattr(config, f.name) for f in fields(xhat.Options)})
    fitted = xhat.fit(built, own.train, tmp_path / "objects", held_out=own.held_out, options=how)
    assert fitted.step == 6
    assert fitted.finished
    assert same(tmp_path / "config", tmp_path / "objects")
    assert numbers(tmp_path / "config") == numbers(tmp_path / "objects")
    pictures = [(tmp_path / run / "samples" / "step-00000006.png").read_bytes() for run in ("config", "objects")]
    assert pictures[0] == pictures[1]


SAMPLES = {"vectors": (5,), "signals": (2, 9), "fields": (1, 6, 4), "volumes": (1, 2, 3, 4)}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_data_of_any_rank_train_measure_and_sample(tmp_path, sample):
    x0 = torch.randn(400, *sample, generator=torch.Generator().manual_seed(1))
    fitted = xhat.fit(objective(*sample), x0, tmp_path / "run", max_steps=5, **QUICK)
    assert rows(tmp_path / "run")[-1]["eval/bits_per_dim"] > 0
    samples, labels = xhat.generate(
        fitted.denoiser, xhat.DDIM(), fitted.shape, 7, times=xhat.uniform_times(fitted.denoiser.schedule, 3)
    )
    assert samples.shape == (7, *sample)
    assert samples.dtype == torch.float32
    assert labels is None
    drawn = sorted((tmp_path / "run").glob("samples/*.png"))
    assert bool(drawn) == (len(sample) > 1), "pictures of all that has axes"


def test_a_run_of_objects_loads_into_its_denoiser(tmp_path):
    fitted = xhat.fit(objective(3), torch.randn(64, 3), tmp_path / "run", max_steps=4, **QUICK)
    fresh = xhat.Denoiser(Small(3), xhat.Cosine(), xhat.V)
    found = xhat.load(tmp_path / "run", into=fresh)
    assert found.denoiser is fresh
    assert (found.step, found.shape.sample) == (4, (3,))
    z, t = torch.randn(4, 3), torch.full((4,), 0.5)
    assert torch.equal(fresh(z, t).x0, fitted.denoiser(z, t).x0)
    with pytest.raises(RunError, match=r"no config names: build the denoiser in Python, then xhat.load\(run, into=denoiser\)"):
        xhat.load(tmp_path / "run")
    with pytest.raises(RunError, match="holds the weights of another denoiser"):
        xhat.load(tmp_path / "run", into=xhat.Denoiser(Small(4), xhat.Cosine(), xhat.V))
    for name in ("sample", "evaluate", "report"):
        more = ("--out", tmp_path / "x.npz") if name == "sample" else ()
        assert command(name, tmp_path / "run", *more)[0] == 2


PROGRAM = """
import sys, torch, xhat
sys.path.insert(0, {tests!r})
from training.test_fit import objective
terms = {{"denoise": xhat.Term(xhat.LearnedUncertainty(xhat.Denoising(xhat.V))),
         "small": xhat.Term(xhat.ImageLoss(lambda x: x.flatten(1).square().mean(1)),
                            weight=xhat.multipliers.GradientRatio(0.1))}}
x0 = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
xhat.fit(objective(3, terms=terms), x0, sys.argv[1], resume=True, max_steps=400, batch_size=8, compile="off", log_every=2,
         checkpoint_every=3, optimizer={{"lr": 1e-2}})
"""


def test_killed_and_resumed_is_the_run_that_was_not(tmp_path):
    """SIGKILL after some checkpoint; the same program again goes on to the same bits, its metrics too."""
    program = tmp_path / "mine.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parents[1])))
    arguments = [sys.executable, "-W", "ignore", str(program)]
    subprocess.run([*arguments, tmp_path / "whole"], check=True, capture_output=True)
    killed = subprocess.Popen([*arguments, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("checkpoint-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert rows(tmp_path / "killed")[-1]["step"] < 400, "it was killed while it trained"
    subprocess.run([*arguments, tmp_path / "killed"], check=True, capture_output=True)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "killed")


class Heard(xhat.Callback):
    def __init__(self, stop_at=None, fail_at=None):
        self.moments, self.stop_at, self.fail_at, self.rows = [], stop_at, fail_at, []

    def step(self, at):
        self.moments.append(("step", at.step))
        assert set(at.losses) == {"loss", "denoise"}
        assert not any(value.requires_grad for value in at.losses.values())
        if at.step == self.stop_at:
            at.stop()
        if at.step == self.fail_at:
            raise ValueError("pruned")

    def logged(self, at):
        self.moments.append(("logged", at.step))
        self.rows.append(at.numbers)

    def measured(self, at):
        self.moments.append(("measured", at.step))
        assert at.numbers["eval/bits_per_dim"] > 0
        assert not at.denoiser(torch.zeros(2, 1, 4, 4), torch.full((2,), 0.5)).x0.isnan().any()

    def pictured(self, at):
        self.moments.append(("pictured", at.step))
        assert at.path.is_file()

    def saved(self, at):
        self.moments.append(("saved", at.step))
        assert weights(at.run)

    def ended(self, at):
        self.moments.append(("ended", at.step))


def images():
    return from_tensors(torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1, value_range=(-1, 1))


def test_callbacks_hear_of_their_moments(tmp_path):
    heard = Heard()
    xhat.fit(objective(1, 4, 4), images(), tmp_path / "run", callbacks=[heard], max_steps=4, eval_every=2, **QUICK)
    of_steps = [[name for name, step in heard.moments if step == n] for n in range(1, 5)]
    assert of_steps == [
        ["step"],
        ["step", "logged", "measured"],
        ["step", "saved"],
        ["step", "logged", "measured", "saved", "pictured", "ended"],
    ]
    assert heard.rows == rows(tmp_path / "run")


def test_a_callback_ends_a_training_that_can_go_on(tmp_path):
    heard = Heard(stop_at=5)
    stopped = xhat.fit(objective(1, 4, 4), images(), tmp_path / "run", callbacks=[heard], max_steps=8, **QUICK)
    assert (stopped.step, stopped.finished) == (5, False)
    assert heard.moments[-1] == ("ended", 5)
    whole = xhat.fit(objective(1, 4, 4), images(), tmp_path / "run", resume=True, max_steps=8, **QUICK)
    assert (whole.step, whole.finished) == (8, True)
    xhat.fit(objective(1, 4, 4), images(), tmp_path / "never", max_steps=8, **QUICK)
    assert same(tmp_path / "run", tmp_path / "never")


def test_what_a_callback_raises_is_raised_once_the_state_is_saved(tmp_path):
    with pytest.raises(ValueError, match="pruned"):
        xhat.fit(objective(1, 4, 4), images(), tmp_path / "run", callbacks=[Heard(fail_at=5)], max_steps=8, **QUICK)
    assert (tmp_path / "run" / "checkpoint-00000005.safetensors").exists()
    again = xhat.fit(objective(1, 4, 4), images(), tmp_path / "run", resume=True, max_steps=8, **QUICK)
    assert again.step == 8


def test_what_comes_with_the_data_reaches_the_terms(tmp_path):
    """A mask, a condition that is no class, a penalty that is handed the draw; pictures are told the data's own values."""
    seen = set()

    def near(images, draw):
        seen.add((tuple(draw.extra), tuple(draw.cond)))
        return (images.flatten(1).mean(1) - draw.extra["mean"]).square()

    x0 = torch.rand(400, 1, 4, 4) * 2 - 1
    extra = {"mask": torch.ones(400, 1, 4, 4), "mean": x0.mean((1, 2, 3))}
    data = from_tensors(x0, {"theta": torch.rand(400)}, extra)
    terms = {
        "denoise": xhat.Term(xhat.Denoising(xhat.V, where=xhat.masked_mean("mask"))),
        "near": xhat.Term(xhat.ImageLoss(near)),
    }
    fitted = xhat.fit(objective(1, 4, 4, terms=terms), data, tmp_path / "run", max_steps=3, **QUICK)
    assert seen == {(("mask", "mean"), ("theta",))}
    assert fitted.shape.conditions == ("theta",)
    assert list((tmp_path / "run" / "samples").iterdir())
    with pytest.raises(ValueError, match="the model is told theta: give values in cond"):
        xhat.generate(fitted.denoiser, xhat.DDIM(), fitted.shape, 2, times=xhat.uniform_times(fitted.denoiser.schedule, 2))


def test_the_loss_by_noise_level_is_the_mean_of_the_samples_drawn_there(tmp_path):
    """Of one step of 64 samples: each bin by hand, from the same draw; importance is no part of a level's loss."""
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    chain = xhat.ImageLoss(lambda x: x.flatten(1).square().mean(1), xhat.FullChain(xhat.DDIM(), 2))
    terms = {"denoise": xhat.Term(xhat.Denoising(xhat.NOISE)), "chain": xhat.Term(chain)}
    torch.manual_seed(0)
    denoiser = xhat.Denoiser(Small(3), xhat.Cosine(), xhat.V)
    own = xhat.Objective(denoiser, terms, xhat.times.LogNormalSigma(0, 2))
    data = from_tensors(x0, held_out=0)
    draw = own.draw(data.get(0, xhat.Shard(0, 64), 64).x0, step=0)
    value = (own.per_image("denoise", draw) / draw.importance).detach()
    logsnr = denoiser.schedule.logsnr(draw.t)
    xhat.fit(own, data, tmp_path / "run", max_steps=1, batch_size=64, log_every=1, compile="off", precision="float32")
    (row,) = rows(tmp_path / "run")
    assert set(row["levels"]) == {"denoise"}
    found = row["levels"]["denoise"]
    assert len(found) > 3
    for level, mean in found.items():
        middle = float(level)
        low, high = (-99 if middle == -10 else middle - 1), (99 if middle == 10 else middle + 1)
        inside = (logsnr > low) & (logsnr <= high)
        assert mean == pytest.approx(float(value[inside].mean()), rel=1e-4)
    assert own.watch is None


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"max_step": 3}, ConfigError, 'unknown config key "max_step": did you mean max_steps'),
        ({"max_steps": "many"}, ConfigError, "max_steps: expected int, got many"),
        ({"max_steps": 3, "optimizer": {"lr": -1.0}}, ConfigError, "optimizer.lr must be at least 0"),
        ({}, RunError, "say how long to train"),
        ({"max_steps": 3, "sampling": {"sampler": "dddim"}}, ConfigError, "did you mean"),
        ({"max_steps": 3, "batch_size": 9, "accumulate": 2}, RunError, "must be a multiple"),
    ],
)
def test_options_that_do_not_fit_leave_nothing(tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        xhat.fit(objective(3), torch.randn(32, 3), tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_parts_that_do_not_fit_leave_nothing(tmp_path):
    def shapes(images):
        return images.mean()

    class Other:
        def get(self, step, shard, rows):
            return Batch(torch.rand(rows, 3 if rows < 8 else 4))

        def fingerprint(self):
            return ""

    wrong = {"p": xhat.Term(xhat.ImageLoss(shapes))}
    for own, data, error, said in (
        (objective(3, terms=wrong), torch.randn(32, 3), RunError, 'term "p": the penalty returned'),
        (objective(4), torch.randn(32, 3), RunError, "the network Small cannot be called with samples"),
        (objective(3), "nowhere", DataError, "is no data"),
        (objective(3), torch.full((32, 3), float("nan")), RunError, "not finite"),
    ):
        with pytest.raises(error, match=said):
            xhat.fit(own, data, tmp_path / "run", max_steps=3, batch_size=8)
        assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=r"Other gave samples \(4,\) after samples \(3,\)"):
        xhat.fit(objective(3), Other(), tmp_path / "later", max_steps=3, batch_size=8)


def test_a_folder_holds_one_run(tmp_path, capsys):
    own = {"max_steps": 3, **QUICK}
    x0 = torch.randn(64, 3)
    xhat.fit(objective(3), x0, tmp_path / "run", **own)
    busy = reserved(tmp_path / "run", "busy in", "run")  # a start that will be refused keeps nobody out
    with busy, pytest.raises(RunError, match="holds a run already: add resume=True to go on with it"):
        xhat.fit(objective(3), x0, tmp_path / "run", **own)
    other = objective(3, terms={"denoise": xhat.Term(xhat.Denoising(xhat.X0))})
    with pytest.raises(RunError, match=r"term denoise: 1 · Denoising\(v\) there, 1 · Denoising\(x0\) here"):
        xhat.fit(other, x0, tmp_path / "run", resume=True, **own)
    with pytest.raises(RunError, match="batch_size: 8 there, 16 here"):
        xhat.fit(objective(3), x0, tmp_path / "run", resume=True, **{**own, "batch_size": 16})
    with pytest.raises(RunError, match="the data are not those"):
        xhat.fit(objective(3), x0 + 1, tmp_path / "run", resume=True, **own)
    longer = xhat.fit(objective(3), x0, tmp_path / "run", resume=True, **{**own, "max_steps": 5})
    assert longer.step == 5
    capsys.readouterr()
    xhat.fit(objective(3), x0, tmp_path / "new", resume=True, **own)
    assert "new holds no run yet: starting from step 0" in capsys.readouterr().err
    assert command("train", "mnist", "--run", tmp_path / "run", "--max_steps", 2, *TINY)[0] == 2
    digits = write_digits(tmp_path / "digits.npz")
    assert command("train", "mnist", "--data", digits, "--run", tmp_path / "cli", "--max_steps", 2, *TINY)[0] == 0
    with pytest.raises(RunError, match="holds a run of xhat train"):
        xhat.fit(objective(3), x0, tmp_path / "cli", **own)


def test_options_as_one_object(tmp_path):
    options = xhat.Options(max_steps=2, batch_size=4, compile="off")
    fitted = xhat.fit(objective(3), torch.randn(64, 3), tmp_path / "run", options=options, log_every=1)
    assert [row["images"] for row in rows(fitted.run)] == [4, 8]
    assert options_of({"max_steps": 2, "batch_size": 4, "compile": "off"}) == options


def test_a_loader_trains_too(tmp_path):
    loader = torch.utils.data.DataLoader(torch.randn(64, 3), batch_size=6)
    fitted = xhat.fit(objective(3), loader, tmp_path / "run", max_steps=4, **QUICK)
    assert fitted.step == 4


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """The same program under torchrun: the weights agree to float tolerance, the files are written once."""
    program = tmp_path / "mine.py"
    text = PROGRAM.format(tests=str(Path(__file__).parents[1]))
    program.write_text(text.replace("max_steps=400", "max_steps=6"))
    subprocess.run([sys.executable, "-W", "ignore", program, tmp_path / "one"], check=True, capture_output=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", program, tmp_path / "two"]
    subprocess.run(launch, check=True, capture_output=True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    assert [row["step"] for row in rows(tmp_path / "two")] == [2, 4, 6]


class Labelled(nn.Module):
    """Knows 3 classes and no null class."""

    def __init__(self, classes=3):
        super().__init__()
        self.body, self.names = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(classes, 1)

    def forward(self, z, t, label):
        return self.body(z) + self.names(label)[:, :, None, None]


def test_guidance_that_the_network_cannot_take_is_said_before_it_trains(tmp_path):
    data = from_tensors(torch.rand(400, 1, 4, 4), {"label": torch.arange(400) % 3}, value_range=(-1, 1))
    terms = {"denoise": xhat.Term(xhat.Denoising(xhat.V))}
    few, enough = (xhat.Objective(xhat.Denoiser(Labelled(n), xhat.Cosine(), xhat.V), terms) for n in (3, 4))
    guided = {**QUICK, "sampling": {"steps": 2, "guidance": 2.0}}
    with pytest.raises(RunError, match="guidance 2 shows the network the null class, number 3, which it cannot take"):
        xhat.fit(few, data, tmp_path / "run", max_steps=2, **guided)
    assert not (tmp_path / "run").exists()
    told = WithNull(data, {"label": 3}, 0.2)
    assert len(told) == len(data)
    assert xhat.fit(enough, told, tmp_path / "run", max_steps=2, **guided).finished
    assert xhat.fit(few, data, tmp_path / "plain", max_steps=2, **QUICK).finished


def test_bf16_and_micro_batches(tmp_path):
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    whole = {"precision": "float32"}  # by default it is what the machine is fast in
    for name, more in (("one", whole), ("parts", {"accumulate": 4, **whole}), ("bf16", {"precision": "bf16"})):
        xhat.fit(objective(3), x0, tmp_path / name, max_steps=4, **QUICK, **more)
    one, parts, bf16 = (weights(tmp_path / name) for name in ("one", "parts", "bf16"))
    for key in one:
        torch.testing.assert_close(one[key], parts[key], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(one[key], bf16[key]) for key in one), "another precision"


def test_parts_that_training_changes_are_the_same_objects_each_time(tmp_path):
    """A penalty with weights of its own, given to its constructor: resumed twice, it is known by what it was at first."""

    class Critic(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = nn.Parameter(scale)

        def forward(self, images):
            return (self.scale * images).flatten(1).square().mean(1)

    def own():
        terms = {
            "denoise": xhat.Term(xhat.Denoising(xhat.V)),
            "critic": xhat.Term(xhat.ImageLoss(Critic(torch.ones(3)))),
        }
        return objective(3, terms=terms)

    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    for steps in (2, 4, 6):
        assert xhat.fit(own(), x0, tmp_path / "run", resume=True, max_steps=steps, **QUICK).step == steps
    assert "tensor" in own().described()["term critic"]


def test_a_nested_option_leaves_its_neighbours(tmp_path):
    options = xhat.Options(
        optimizer=OptimizerConfig(weight_decay=0.1, warmup_steps=3), max_steps=2, batch_size=4, compile="off"
    )
    xhat.fit(objective(3), torch.randn(64, 3), tmp_path / "run", options=options, optimizer={"lr": 1e-4})
    stored = json.loads((tmp_path / "run" / "objects.json").read_text())["options"]["optimizer"]
    assert (stored["lr"], stored["weight_decay"], stored["warmup_steps"]) == (1e-4, 0.1, 3)


def test_functions_that_a_function_has_made_are_told_apart(tmp_path):
    def bounded(limit):
        def penalty(images):
            return (images - limit).flatten(1).square().mean(1)

        return penalty

    def own(limit, lambda_=None):
        penalty = lambda_ or bounded(limit)
        return objective(3, terms={"d": xhat.Term(xhat.Denoising(xhat.V)), "p": xhat.Term(xhat.ImageLoss(penalty))})

    x0 = torch.randn(64, 3)
    xhat.fit(own(1.0), x0, tmp_path / "run", max_steps=2, **QUICK)
    with pytest.raises(RunError, match="holds a run of other objects"):
        xhat.fit(own(5.0), x0, tmp_path / "run", resume=True, max_steps=2, **QUICK)
    assert xhat.fit(own(1.0), x0, tmp_path / "run", resume=True, max_steps=4, **QUICK).step == 4
    said = [own(0, f).described()["term p"] for f in (lambda x: x.sum(1), lambda x: 2 * x.sum(1), lambda x: x.sum(1))]
    assert said[0] == said[2] != said[1]
    poisson = [own(0, xhat.losses.penalties.physics.poisson(s, 1.0)).described()["term p"] for s in (1.0, 5.0)]
    assert poisson[0] != poisson[1]


def test_an_objective_that_a_callback_calls_counts_nothing(tmp_path):
    class Calls(xhat.Callback):
        def step(self, at):
            assert not at.objective.training
            at.objective(torch.randn(8, 3))
            at.objective.eval()

    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    xhat.fit(objective(3), x0, tmp_path / "calls", max_steps=4, callbacks=[Calls()], **QUICK)
    xhat.fit(objective(3), x0, tmp_path / "never", max_steps=4, **QUICK)
    assert same(tmp_path / "calls", tmp_path / "never")
    assert numbers(tmp_path / "calls") == numbers(tmp_path / "never")
