"""--use FILE.py: a network, a penalty and a data source of a user's own in every command, a study and a report."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from helpers import process, xhat

MINE = '''
import torch, xhat
from torch import nn

@xhat.register
class Tiny(nn.Module):
    """Two convolutions that see the time as one more channel."""
    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z, t, label=None):
        return self.body(torch.cat([z, t.to(z).reshape(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])], 1))

@xhat.register
def darkness(images):
    return (images + 1).flatten(1).mean(1)

@xhat.register
def stripes(n: int = 400, seed: int = 0) -> xhat.data.DataSource:
    phase = 6 * torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    images = (127.5 * (1 + torch.sin(phase + torch.arange(8.0)))).round().byte().expand(n, 1, 8, 8).contiguous()
    return xhat.data.from_tensors(images, extra={"mask": torch.ones(n, 1, 8, 8)}, seed=seed)
'''
CHOICES = ("--network", "tiny(width=6)", "--data", "stripes(n=500)", "--terms.dark.loss", "image_loss(darkness)")
QUICK = ("--batch_size", 16, "--log_every", 1, "--compile", "off", "--checkpoint_every", 2, "--sampling.steps", 2)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_parts.py"
    path.write_text(MINE)
    return path


def train(mine, run, *more, steps=3):
    return xhat("train", "mnist", "--run", run, "--use", mine, "--max_steps", steps, *CHOICES, *QUICK, *more)[0]


@pytest.fixture
def run(mine, tmp_path):
    assert train(mine, tmp_path / "run") == 0
    return tmp_path / "run"


def refused(capsys, *arguments):
    capsys.readouterr()
    code, out, err = xhat(*arguments, capsys=capsys)
    assert code == 2, err
    assert out == ""
    (line,) = err.strip().splitlines()
    return line


def test_every_command_works_on_parts_of_ones_own(mine, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use = ("--use", mine)
    assert xhat("sample", run, "--n", 6, "--out", "s.npz", *use)[0] == 0
    with np.load("s.npz") as arrays:
        assert (arrays["images"].shape, arrays["images"].dtype) == ((6, 8, 8, 1), np.uint8)
    assert Path("s.png").exists()
    capsys.readouterr()
    code, out, _ = xhat("evaluate", run, "--n", 8, "--images", 8, "--json", *use, capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert set(found["penalties"]) == {"total_variation", "dark"}
    assert found["denoising"]["images_are"] == "held out"
    assert xhat("evaluate", run, "--ode", "--n", 2, *use)[0] == 0
    assert xhat("evaluate", run, "--bound", "--n", 4, *use)[0] == 0
    assert xhat("inspect", "mnist", *CHOICES, *use, "--picture", "w.png")[0] == 0
    assert xhat("inspect", run, *use, "--picture", "w.png")[0] == 0
    assert xhat("gradients", run, "--n", 4, "--chain", 2, *use)[0] == 0
    assert xhat("report", run, "--n", 8, "--out", "r.html", *use)[0] == 0
    page = Path("r.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "tiny(width=6)" in page
    assert "stripes(n=500)" in page


def test_a_study_compares_two_choices_of_ones_own(mine, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(
        """
base: mnist
common: {data: "stripes(n=400)", max_steps: 2, max_minutes: null, batch_size: 8, compile: "off", sampling.steps: 2}
samples: 8
penalties: {dark: darkness}
changes:
  narrow: {network: tiny(width=4)}
  dark: {network: tiny(width=4), terms.dark.loss: image_loss(darkness)}
"""
    )
    code, out, err = xhat("compare", study, "--out", tmp_path / "out", "--jobs", 2, "--json", "--use", mine, capsys=capsys)
    assert code == 0, err
    changes = json.loads(out)["changes"]
    assert [change["name"] for change in changes] == ["narrow", "dark"]
    assert all(not change["failed"] and change["values"]["dark"] for change in changes)
    assert (tmp_path / "out" / "report.html").exists()
    assert xhat("report", tmp_path / "out", "--out", tmp_path / "again.html", "--use", mine)[0] == 0
    line = refused(capsys, "report", tmp_path / "out", "--out", tmp_path / "no.html")
    assert "was trained with parts of my_parts.py: add --use my_parts.py" in line
    assert not (tmp_path / "no.html").exists()
    line = refused(capsys, "compare", study, "--out", tmp_path / "out")
    assert "stripes" in line or "tiny" in line


def test_killed_and_resumed_is_the_run_that_was_not(mine, tmp_path):
    steps, options = 300, ("--max_steps", 300, "--use", mine, *CHOICES, *QUICK)
    assert process("train", "mnist", "--run", tmp_path / "whole", *options).wait() == 0
    killed = process("train", "mnist", "--run", tmp_path / "killed", *options)
    until = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("checkpoint-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = process("train", "--run", tmp_path / "killed", "--resume", "--use", mine)
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert f"trained {steps} steps" in out
    a, b = (load_file(tmp_path / name / "ema.safetensors") for name in ("whole", "killed"))
    assert all((a[key] == b[key]).all() for key in a)


def test_a_run_keeps_its_file_and_says_that_it_needs_it(mine, run, tmp_path, capsys):
    (copy,) = (run / "used").glob("*/my_parts.py")
    assert copy.read_text() == MINE
    for command in (
        ("sample", run, "--out", tmp_path / "s.npz"),
        ("evaluate", run),
        ("gradients", run),
        ("inspect", run),
        ("report", run, "--out", tmp_path / "r.html"),
        ("train", "--run", run, "--resume"),
    ):
        line = refused(capsys, *command)
        assert "was trained with parts of my_parts.py: add --use my_parts.py (a copy lies in " in line, line
    moved = tmp_path / "alone.safetensors"
    moved.write_bytes((run / "ema.safetensors").read_bytes())
    assert "was trained with parts of my_parts.py: add --use my_parts.py" in refused(
        capsys, "sample", moved, "--out", tmp_path / "s.npz"
    )
    assert not (tmp_path / "s.npz").exists()
    assert xhat("sample", run, "--n", 2, "--out", tmp_path / "s.npz", "--use", copy)[0] == 0


def test_a_file_that_changed_since_is_said(mine, run, tmp_path, capsys):
    mine.write_text(MINE + "\n# another thought\n")
    code, _, err = xhat("sample", run, "--n", 2, "--out", tmp_path / "s.npz", "--use", mine, capsys=capsys)
    assert code == 0
    assert "note: my_parts.py has changed since" in err
    assert str(run / "used") in err


def test_parts_of_another_file_are_said(mine, run, tmp_path, capsys):
    """Of the same names: what a run was trained with may be something else there."""
    (tmp_path / "others.py").write_text(MINE)
    code, _, err = xhat("sample", run, "--n", 2, "--out", tmp_path / "s.npz", "--use", tmp_path / "others.py", capsys=capsys)
    assert code == 0
    assert "of my_parts.py: it is now that of others.py" in err


BROKEN = {
    "a syntax error": ("def f(:\n    pass\n", "line 1: SyntaxError: invalid syntax"),
    "an error at import": ("import xhat\nx = 1\nundefined_name\n", "line 3: NameError: name 'undefined_name' is not defined"),
    "nothing registered": ("x = 1\n", "the file registers nothing: put @xhat.register before"),
    "a name that exists": (
        "import xhat\n@xhat.register\ndef total_variation(images):\n    return images.flatten(1).mean(1)\n",
        "line 2: ValueError: there is a penalty called total_variation already: choose another name",
    ),
    "a name of another family": (
        "import xhat\n@xhat.register\ndef ddim(images):\n    return images.flatten(1).mean(1)\n",
        "there is a sampler called ddim already",
    ),
    "nobody knows what": (
        "import xhat\n@xhat.register\ndef something(a, b):\n    return a\n",
        "nobody can tell what something is: say so with @xhat.register.network",
    ),
    "exit": ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_used_is_one_line(text, said, tmp_path, capsys):
    path = tmp_path / "broken_parts.py"
    path.write_text(text)
    line = refused(capsys, "train", "mnist", "--run", tmp_path / "run", "--use", path, "--max_steps", 2)
    assert line.startswith(f"xhat train: --use {path}: ")
    assert said in line
    assert not (tmp_path / "run").exists()


PARTS = {
    "a penalty of the wrong shape": (
        "@xhat.register\ndef bad(images):\n    return images.mean()\n",
        ("--terms.bad.loss", "image_loss(bad)"),
        'their_parts.py: term "bad": the penalty returned () instead of one value per image',
    ),
    "a penalty that fails": (
        "@xhat.register\ndef bad(images):\n    return images.nothing\n",
        ("--terms.bad.loss", "image_loss(bad)"),
        'term "bad" (image_loss(bad) of their_parts.py) cannot be computed: AttributeError',
    ),
    "a network that fails": (
        "@xhat.register\nclass Bad(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.p = torch.nn.Parameter(torch.ones(1))\n    def forward(self, z, t):\n"
        "        return z @ torch.ones(3, 3)\n",
        ("--network", "bad"),
        "the network bad of their_parts.py cannot be called with samples (2, 1, 8, 8): RuntimeError",
    ),
    "a network that cannot be built": (
        "@xhat.register\nclass Bad(torch.nn.Module):\n    def __init__(self, width: int = 3):\n"
        "        raise OSError('no weights')\n"
        "    def forward(self, z, t):\n        return z\n",
        ("--network", "bad"),
        "their_parts.py: network: bad: no weights",
    ),
    "a parameter of the wrong type": (
        "@xhat.register\nclass Good(torch.nn.Module):\n    def __init__(self, width: int = 3):\n        super().__init__()\n"
        "    def forward(self, z, t):\n        return z\n",
        ("--network", "good(width='wide')"),
        "their_parts.py: network: good: width must be a int, got 'wide'",
    ),
    "a parameter that does not exist": (
        "from __future__ import annotations\n"
        "@xhat.register\nclass Good(torch.nn.Module):\n    def __init__(self, width: int = 3):\n        super().__init__()\n"
        "    def forward(self, z, t):\n        return z\n",
        ("--network", "good(widht=3)"),
        "did you mean width?",
    ),
    "a source of several shapes": (
        "@xhat.register\nclass bad:\n    def get(self, step, shard, rows):\n"
        "        return xhat.Batch(torch.rand(rows, 1, 8, 8 if rows < 16 else 9))\n"
        "    def fingerprint(self):\n        return ''\n",
        ("--data", "bad", "--max_steps", 2),
        "the data source bad gave samples (1, 8, 9) after samples (1, 8, 8)",
    ),
    "an extra of other length": (
        "@xhat.register\nclass bad:\n    def get(self, step, shard, rows):\n"
        "        return xhat.Batch(torch.rand(rows, 1, 8, 8), None, {'m': [1]})\n"
        "    def fingerprint(self):\n        return ''\n",
        ("--data", "bad"),
        'their_parts.py: the data source bad: extra["m"] has 1 rows for 2 samples',
    ),
    "a source that is none": (
        "@xhat.register.data\ndef bad():\n    return 3\n",
        ("--data", "bad"),
        "their_parts.py: data: bad",
    ),
    "a source that fails": (
        "@xhat.register\nclass bad:\n    def get(self, step, shard, rows):\n        raise OSError('disk is gone')\n"
        "    def fingerprint(self):\n        return ''\n",
        ("--data", "bad"),
        "their_parts.py: the data source bad failed at get(0, ",
    ),
}


@pytest.mark.parametrize(("text", "options", "said"), PARTS.values(), ids=PARTS)
def test_parts_that_do_not_fit_name_their_file_and_leave_nothing(text, options, said, tmp_path, capsys):
    path, good = tmp_path / "their_parts.py", tmp_path / "good_data.py"
    future, imports = "from __future__ import annotations\n", "import torch\nimport xhat\n"
    path.write_text(future + imports + text.removeprefix(future) if text.startswith(future) else imports + text)
    good.write_text(MINE)
    own = {"--data": "stripes(n=400)", "--network": "tiny(width=4)"}
    given = [word for key, value in own.items() if key not in options for word in (key, value)]
    used = ("--use", path, "--use", good)
    line = refused(capsys, "train", "mnist", "--run", tmp_path / "run", *used, "--max_steps", 2, *given, *options, *QUICK)
    assert said in line, line
    assert not (tmp_path / "run").exists()


def test_no_code_runs_that_was_not_named(tmp_path, capsys, monkeypatch):
    """A file of parts in the current folder, in the run and in a study is data until somebody names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text("raise SystemExit('it ran')\n")
    line = refused(capsys, "train", "mnist", "--run", tmp_path / "run", "--network", "my_parts.Net", "--max_steps", 1)
    assert 'unknown name "my_parts.Net"' in line


def test_a_part_by_its_name_in_python_needs_its_file_too(mine, tmp_path, capsys):
    run = tmp_path / "run"
    options = ("--network", "Tiny(width=6)", "--data", "stripes(n=500)", "--max_steps", 1, *QUICK)
    code, _, err = xhat("train", "mnist", "--run", run, "--use", mine, *options, capsys=capsys)
    assert code == 0, err
    assert "no effect" not in err
    assert "add --use my_parts.py" in refused(capsys, "sample", run, "--out", tmp_path / "s.npz")


def test_a_name_of_ours_in_another_family_needs_no_file(tmp_path, capsys):
    """A penalty called unet has nothing to do with the network unet."""
    path, digits = tmp_path / "taken.py", tmp_path / "digits.npz"
    path.write_text("import xhat\n@xhat.register\ndef unet(images):\n    return images.flatten(1).mean(1)\n")
    np.savez(digits, images=np.zeros((64, 8, 8), np.uint8) + 99)
    options = ("--data", digits, "--max_steps", 1, "--network", "unet(widths=(8, 8), blocks=(1, 1))", *QUICK)
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", "--use", path, *options, capsys=capsys)
    assert code == 0, err
    assert "taken.py has no effect" in err
    assert xhat("sample", tmp_path / "run", "--n", 2, "--out", tmp_path / "s.npz")[0] == 0


def test_what_a_file_imports_from_beside_it_is_kept_with_it(tmp_path, capsys):
    folder = tmp_path / "my code"
    folder.mkdir()
    (folder / "shades.py").write_text("LIMIT = 0.5\n")
    path = folder / "with shades.py"
    path.write_text("import shades\nprint('loaded')\n" + MINE.replace("(images + 1)", "(images + shades.LIMIT)"))
    run = tmp_path / "run"
    assert train(path, run) == 0
    (copy,) = (run / "used").glob("*/with shades.py")
    assert (copy.parent / "shades.py").read_text() == "LIMIT = 0.5\n"
    assert "add --use 'with shades.py'" in refused(capsys, "sample", run, "--out", tmp_path / "s.npz")
    code, out, _ = xhat("evaluate", run, "--n", 4, "--images", 4, "--json", "--use", copy, capsys=capsys)
    assert code == 0
    assert json.loads(out)["samples"] == 4, "what a file prints spoils no result"
    (folder / "shades.py").write_text("LIMIT = 0.25\n")
    _, _, err = xhat("sample", run, "--n", 2, "--out", tmp_path / "s.npz", "--use", path, capsys=capsys)
    assert "what with shades.py imports has changed since" in err


def test_going_on_with_a_changed_file_keeps_both_copies(mine, run, capsys):
    changed = MINE + "\n# another thought\n"
    mine.write_text(changed)
    code, _, err = xhat("train", "--run", run, "--resume", "--use", mine, "--max_steps", 5, capsys=capsys)
    assert code == 0, err
    assert "my_parts.py has changed since" in err
    assert {copy.read_text() for copy in (run / "used").glob("*/my_parts.py")} == {MINE, changed}
    _, _, err = xhat("train", "--run", run, "--resume", "--use", mine, "--max_steps", 6, capsys=capsys)
    assert "has changed" not in err


def test_two_files_of_which_one_imports_the_other(mine, tmp_path, capsys):
    other = tmp_path / "more_parts.py"
    other.write_text("import xhat\nfrom my_parts import darkness\n@xhat.register\ndef light(x):\n    return -darkness(x)\n")
    run = tmp_path / "run"
    options = ("--terms.light.loss", "image_loss(light)", *CHOICES, *QUICK)
    code, _, err = xhat(
        "train", "mnist", "--run", run, "--use", mine, "--use", other, "--max_steps", 1, *options, capsys=capsys
    )
    assert code == 0, err
    assert {copy.name for copy in (run / "used").glob("*/*.py")} == {"my_parts.py", "more_parts.py"}


LATE = {
    "a gate": (
        "@xhat.register\ndef shaky(seed, step):\n    return 1.0 if step < 2 else 1 / 0\n",
        ("--terms.denoise.when", "shaky"),
        "late.py, line 5: ZeroDivisionError: division by zero",
    ),
    "a sampler": (
        "@xhat.register\nclass shaky(xhat.samplers.Sampler):\n    def step(self, model, z, t, s, noise, state):\n"
        "        raise KeyError('x')\n",
        ("--sampling.sampler", "shaky"),
        "late.py, line 6: KeyError: 'x'",
    ),
    "an exit": (
        "@xhat.register\ndef shaky(seed, step):\n    sys.exit(3) if step == 2 else None\n    return 1.0\n",
        ("--terms.denoise.when", "shaky"),
        "late.py, line 5: SystemExit: 3",
    ),
}


@pytest.mark.parametrize(("text", "options", "said"), LATE.values(), ids=LATE)
def test_a_part_that_fails_while_it_trains_names_its_line(text, options, said, mine, tmp_path, capsys):
    path = tmp_path / "late.py"
    path.write_text("import sys, torch, xhat\n\n" + text)
    own = ("--network", "tiny(width=4)", "--data", "stripes(n=400)", "--max_steps", 4, *QUICK, *options)
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", "--use", mine, "--use", path, *own, capsys=capsys)
    assert code == 2
    assert err.strip().splitlines()[-1] == f"xhat train: {said}"


def test_what_was_brought_for_nothing_is_said(mine, tmp_path, capsys):
    digits = tmp_path / "digits.npz"
    np.savez(digits, images=np.zeros((64, 8, 8), np.uint8) + 99)
    options = ("--data", digits, "--max_steps", 1, "--use", mine, "--network", "unet(widths=(8, 8), blocks=(1, 1))", *QUICK)
    code, _, err = xhat("train", "mnist", "--run", tmp_path / "run", *options, capsys=capsys)
    assert code == 0, err
    assert f"note: --use {mine} has no effect: the config names none of its parts" in err
    assert not (tmp_path / "run" / "used").exists()


def test_data_that_are_no_pictures_go_everywhere_too(tmp_path, capsys, monkeypatch):
    """Vectors with a condition: samples as floats in the data's own numbers, no FID, no pictures, a report all the same."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rings.py"
    path.write_text(
        """
import torch, xhat
from torch import nn

@xhat.register
class Dense(nn.Module):
    def __init__(self, channels: int, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(channels + 2, width), nn.SiLU(), nn.Linear(width, channels))

    def forward(self, z, t, radius):
        return self.body(torch.cat([z, t[:, None], radius[:, None]], 1))

@xhat.register
def rings(n: int = 600) -> xhat.data.DataSource:
    angle, radius = 6.28 * torch.rand(n), 0.5 + torch.rand(n)
    x0 = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    class Doubles:  # in float64, which training and measuring take as float32
        held_out = None

        def get(self, step, shard, rows):
            index = torch.arange(step * shard.total + shard.first, step * shard.total + shard.first + rows) % n
            return xhat.Batch(x0[index].double(), {"radius": radius[index]})

        def fingerprint(self):
            return f"rings {n}"

        def __len__(self):
            return n

    return Doubles()

@xhat.register
def off_ring(images, draw):
    return (images.norm(dim=1) - draw.cond["radius"]).square()
"""
    )
    use = ("--use", path)
    options = ("--network", "dense", "--data", "rings", "--terms.ring.loss", "image_loss(off_ring, expect=None)")
    how = ("--max_steps", 3, "--sampling.guidance", 1, "--sampling.steps", 2, "--batch_size", 16, "--compile", "off")
    code, _, err = xhat("train", "mnist", "--run", "run", *options, *how, *use, capsys=capsys)
    assert code == 0, err
    assert "vectors of 2" in err
    assert xhat("sample", "run", "--n", 5, "--out", "s.npz", *use)[0] == 0
    with np.load("s.npz") as arrays:
        assert arrays["samples"].shape == (5, 2)
        assert arrays["cond_radius"].shape == (5,)
    assert not Path("s.png").exists()
    code, _, err = xhat("evaluate", "run", "--n", 8, "--images", 8, *use, capsys=capsys)
    assert code == 0, err
    code, _, err = xhat("report", "run", "--n", 8, "--out", "r.html", *use, capsys=capsys)
    assert code == 0, err
    assert Path("r.html").exists()
    assert xhat("inspect", "run", *use, "--picture", "w.png")[0] == 0
    assert xhat("gradients", "run", "--n", 4, "--chain", 2, *use)[0] == 0


def test_a_program_that_brings_the_parts_itself_needs_no_use(mine, run):
    """`import my_parts` registers them: a run loads, and says nothing."""
    program = (
        f"import sys; sys.path.insert(0, {str(mine.parent)!r}); import xhat, my_parts; print(xhat.load({str(run)!r}).step)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
    alone = f"import xhat; xhat.load({str(run)!r})"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=False)
    assert "was trained with parts of my_parts.py" in done.stderr
