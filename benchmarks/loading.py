"""What it costs to read data from elsewhere than memory: python benchmarks/loading.py [ROUNDS]

The network of the preset mnist is trained on the first 20,000 digits of MNIST: in memory; of a mapped file; of a folder of PNGs
that was packed; and of PNGs that workers decode, from a folder, a Parquet file and WebDataset shards. Rounds of 30 steps are
interleaved in one process: some in the first epoch, the others after it, when what is kept once it is decoded is known. Printed
are the medians of images per second, and the median ratios to memory in the same rounds. Then how long a folder of 100,000
PNGs takes to be ready, the first time and after it. Everything is written to a temporary folder.
"""

import contextlib
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from usage import counts

from xhat.config.build import build_denoiser, build_objective
from xhat.config.config import Config
from xhat.config.data import build_data
from xhat.config.parsing import read_config, recipe_path
from xhat.data.load import load
from xhat.training.loop import micro_batch
from xhat.training.setup import Setup, set_up

DIGITS, FILES, STEPS = 20_000, 100_000, 30


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as place, _silent_datasets():
        os.environ["XHAT_CACHE"] = f"{place}/cache"
        folder = Path(place)
        _write(folder)
        sources = {
            "in memory": str(folder / "digits.npz"),
            "mapped .npy": str(folder / "digits.npy"),
            "folder, packed": str(folder / "digits"),
            "folder, decoded by workers": f"images({folder / 'digits'})",
            "Parquet, decoded by workers": f"parquet({folder / 'digits.parquet'})",
            "WebDataset, decoded by workers": f"webdataset({folder / 'digits.tar'})",
        }
        trained = {name: _trained(data) for name, data in sources.items()}
        epoch = DIGITS // trained["in memory"].options.batch_size
        if (rounds + 1) * STEPS > epoch:
            raise SystemExit(f"loading.py: at most {epoch // STEPS - 1} rounds of {STEPS} steps fit into the first epoch")
        with contextlib.ExitStack() as stack:
            for setup in trained.values():
                stack.enter_context(setup.reading())
            in_first = _interleaved(trained, 0, rounds)
            for setup in trained.values():
                for step in range((rounds + 1) * STEPS, 2 * epoch):  # read on, without training
                    micro_batch(setup, step, 0)
            later = _interleaved(trained, 2 * epoch, rounds)
        print(f"{'first epoch':>21}{'after it':>21}")
        print(f"{'images/s':>9}  {'of memory':>9} " * 2)
        for name in sources:
            for speeds in (in_first, later):
                ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds["in memory"], strict=True))
                print(f"{statistics.median(speeds[name]):9.0f}  {ratio:9.3f} ", end="")
            print(f" {name}")
        many = folder / "many"
        _many(folder / "digits", many)
        for what in ("the first time", "after that"):
            start = time.perf_counter()
            build_data(Config(data=str(many)))
            print(f"{time.perf_counter() - start:9.1f}  seconds until {FILES:,} PNGs of 28 x 28 are ready, {what}")


def _trained(data: str) -> Setup:
    config = replace(
        read_config(recipe_path("mnist")), data=data, labels=False, max_steps=10**6, max_minutes=None, compile="off"
    )
    found = build_data(config)
    torch.manual_seed(0)
    return set_up(build_objective(config, build_denoiser(config, found.shape)), found.train, config)


def _interleaved(trained: dict[str, Setup], first: int, rounds: int) -> dict[str, list[float]]:
    """Speeds of each in some rounds from a step on, after one to get going."""
    speeds: dict[str, list[float]] = {name: [] for name in trained}
    for round_ in range(rounds + 1):
        for name in list(trained) if round_ % 2 else reversed(trained):
            speed = _speed(trained[name], first + round_ * STEPS)
            if round_:
                speeds[name].append(speed)
    return speeds


def _speed(setup: Setup, first: int) -> float:
    """Images per second of some training steps from this one on."""
    start, size = time.perf_counter(), setup.options.batch_size
    for step in range(first, first + STEPS):
        shard, batch = micro_batch(setup, step, 0)
        with setup.autocast:
            loss = setup.state.objective(batch.x0, step=step, cond=batch.cond, shard=shard)["loss"]
        loss.backward()
        for optimizer in setup.state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return STEPS * size / (time.perf_counter() - start)


def _write(folder: Path) -> None:
    """The digits in each form."""
    import datasets

    digits = load("mnist").pixels[:DIGITS, 0].numpy()
    np.savez(folder / "digits.npz", images=digits)
    np.save(folder / "digits.npy", digits)
    files = [_png(digit) for digit in digits]
    (folder / "digits").mkdir()
    for number, data in enumerate(files):
        (folder / "digits" / f"{number:06d}.png").write_bytes(data)
    datasets.Dataset.from_dict({"image": files}).to_parquet(str(folder / "digits.parquet"))
    with tarfile.open(folder / "digits.tar", "w") as tar:
        for number, data in enumerate(files):
            member = tarfile.TarInfo(f"{number:06d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _many(digits: Path, many: Path) -> None:
    files = [path.read_bytes() for path in sorted(digits.iterdir())]
    for number in range(FILES):
        place = many / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.png").write_bytes(files[number % len(files)])


@contextlib.contextmanager
def _silent_datasets() -> Iterator[None]:
    import datasets

    datasets.disable_progress_bars()
    yield


if __name__ == "__main__":
    main(*counts(rounds=5))
