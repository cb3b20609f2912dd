"""How long training stands still for a state that is saved: python benchmarks/saving.py [STEPS]

Two U-Nets are trained for STEPS steps each, with an average of their weights. Eight times on the way the state is saved: in
turn as a training does it, which waits for a copy and has it written by a thread; and waiting until it is on the disk. Printed
is how long each takes, and the share of the copies in a training that saves every 500 steps, as the presets do. All is written
to a temporary folder.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from usage import counts

import xhat
from xhat.config.options import Options
from xhat.data import from_tensors
from xhat.training.display import standard
from xhat.training.log import Log
from xhat.training.loop import Loop
from xhat.training.saving import Saving
from xhat.training.setup import set_up
from xhat.training.stop import Stop

SAVES, EVERY = 8, 500


def main(steps: int) -> None:
    print(f"{'network':8}{'weights':>10}{'state':>10}{'a step':>9}{'copy':>9}{'written':>10}{f'of {EVERY} steps':>14}")
    _measured("mnist", (1, 28, 28), 128, xhat.UNet(channels=1, size=28, widths=(32, 64), blocks=(1, 4)), steps)
    _measured("larger", (3, 32, 32), 16, xhat.UNet(channels=3, size=32, widths=(128, 256, 256), blocks=(2, 2, 2)), steps)


def _measured(name: str, sample: tuple[int, ...], batch: int, network: xhat.UNet, steps: int) -> None:
    """A line of the table."""
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising(xhat.V))})
    options = Options(batch_size=batch, max_steps=steps, max_minutes=None)
    setup = set_up(objective, from_tensors(torch.rand(256, *sample) * 2 - 1), options)
    took: list[float] = []
    copies: list[float] = []
    writes: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        run, stop = Path(place), Stop()
        saving = Saving(setup, run, Log(run, setup.accelerator, objective, steps, 0, batch, standard()))
        loop = Loop(setup, stop, time.perf_counter())
        while loop.progress() < 1:
            start = time.perf_counter()
            loop.gradients()
            loop.update()
            took.append(time.perf_counter() - start)
            if len(took) % (steps // SAVES) == 0:
                saving.settled(wait=True)
                waits = len(took) // (steps // SAVES) % 2 == 0
                start = time.perf_counter()
                saving.begin()
                saving.settled(wait=waits)
                (writes if waits else copies).append(time.perf_counter() - start)
        saving.close()
        stop.restore()
        size = sum(file.stat().st_size for file in (next(run.glob("checkpoint-*")), run / "ema.safetensors"))
    step, copy = statistics.median(took), statistics.median(copies)
    weights = sum(p.numel() for p in network.parameters())
    print(
        f"{name:8}{weights / 1e6:9.1f}M{size / 2**20:7.0f}MiB{1e3 * step:7.0f}ms{1e3 * copy:7.1f}ms"
        f"{statistics.median(writes):9.2f}s{copy / (copy + EVERY * step):14.3%}"
    )


if __name__ == "__main__":
    main(*counts(steps=40))
