"""Small inputs, and commands run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xhat.cli import main

TINY = (
    "--network",
    "unet(widths=(8, 8), blocks=(1, 1), embedding=16)",
    "--batch_size",
    "16",
    "--log_every",
    "1",
    "--compile",
    "off",
    "--checkpoint_every",
    "4",
    "--sample_every",
    "1000",
    "--sampling.steps",
    "3",
)


def xhat(*args: object, capsys=None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process; as in one of its own, no file of parts is in use before."""
    forget_used_files()
    code = main([str(a) for a in args])
    out = capsys.readouterr() if capsys else None
    return (code, out.out, out.err) if out else (code, "", "")


def process(*args: object, launcher: tuple[str, ...] = ("-m", "xhat"), **environment: str) -> subprocess.Popen:
    """The same in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *launcher, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_digits(path: Path, n: int = 64) -> Path:
    """An .npz of n small grey images with labels 0..3."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(n) % 4)
    return path


def write_pngs(folder: Path, n: int, size: tuple[int, int] = (20, 16), mode: str = "RGB", classes: int = 0) -> Path:
    """A folder of n random PNGs, in class sub-folders if classes > 0."""
    rng = np.random.default_rng(0)
    for i in range(n):
        place = folder / f"class{i % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).convert(mode).save(place / f"{i:04d}.png")
    return folder


def states_equal(a: object, b: object) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def set_up_config(config):
    """What `xhat train` sets up, of a config alone."""
    from xhat.commands.actions.train import new_objective
    from xhat.config.data import build_data
    from xhat.training.setup import set_up

    data = build_data(config)
    objective = new_objective(config, data.shape, fresh=True)
    return set_up(objective, data.train, config, held_out=data.held_out, config=config)


def forget_used_files():
    """What --use of earlier commands in this process has brought."""
    from xhat.config import use
    from xhat.registry import FAMILIES

    for whole, file in use._USED.items():
        if (folder := str(whole.parent)) in sys.path:
            sys.path.remove(folder)
        for module in (f"xhat_use_{file.path.stem}", file.path.stem, *(name.removesuffix(".py") for name in file.beside)):
            sys.modules.pop(module, None)
        for family in FAMILIES:
            parts, of_python = family.names()
            kept = {name: part for name, part in parts.items() if (family.kind, name) not in file.parts}
            family.restore((kept, {name: low for name, low in of_python.items() if low in kept}))
    use._USED.clear()
