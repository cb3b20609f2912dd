"""What a device holds and sends in training, by formula and as counted on 2 and 4 processes: python benchmarks/scale.py

With P weights, of which P_A are trained by Adam and P_M by Muon, and N processes, in bytes:

whole   holds 4 P (weights) + 4 P (gradients) + 8 P_A + 4 P_M (optimizers) + 4 P (average)
split   holds the N-th part of all that; during a step all weights and their gradients beside, 8 P
either  sends and receives 2 (N - 1)/N 4 P a step: gradients all-reduced; or weights gathered, gradients reduced and scattered

Counted is what the tensors of a U-Net hold after a step, and the buffers that a step gives to the processes' library. A count
that is more than 2 % beside its formula ends with exit code 1. Then what a network of 10^9 weights, all of Adam's, takes on
more devices.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from usage import Parser

import xhat
from xhat.config.options import OptimizerConfig, Options
from xhat.data import from_tensors
from xhat.diffusion.sharded import part
from xhat.distributed import from_all
from xhat.training.loop import Loop
from xhat.training.setup import set_up
from xhat.training.stop import Stop

PROCESSES, FAR, NETWORK = (2, 4), 0.02, 10**9
WHOLE, SPLIT = {"gloo:all_reduce": 2}, {"c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1}
"""What a step asks the library for, and how often a ring passes most of the buffer on. Gloo scatters by reducing, once more."""
GIB = 2**30


def held(weights: int, muon: int, processes: int, *, split: bool) -> float:
    """Bytes that a process holds between two steps."""
    return (20 * weights - 4 * muon) / (processes if split else 1)


def gathered(weights: int, *, split: bool) -> float:
    """Bytes that a step takes beside."""
    return 8 * weights if split else 0


def sent(weights: int, processes: int) -> float:
    """Bytes that a process sends in a step, and receives."""
    return 2 * (processes - 1) / processes * 4 * weights


def main() -> None:
    parser = Parser(description="what a device holds and sends in training")
    parser.add_argument("--worker", choices=("whole", "split"), help="as one of several processes, count and print")
    chosen = parser.parse_args().worker
    if chosen is not None:
        _work(split=chosen == "split")
        return
    print(f"{'processes':>9} {'weights':>8}{'held':>12}{'formula':>12}{'sent':>12}{'formula':>12}")
    far = False
    for processes in PROCESSES:
        for kind in ("whole", "split"):
            found = _counted(processes, kind)
            weights, muon = found["weights"], found["muon"]
            pairs = (
                (found["held"], held(weights, muon, processes, split=kind == "split")),
                (found["sent"], sent(weights, processes)),
            )
            far |= any(abs(count - formula) > FAR * formula for count, formula in pairs)
            print(f"{processes:9d} {kind:>8}" + "".join(f"{value / 2**20:8.2f} MiB" for pair in pairs for value in pair))
    if far:
        sys.exit(f"scale.py: a count is more than {FAR:.0%} beside its formula")
    print(f"\n{NETWORK:.0e} weights of Adam's, by formula; a device, in GiB, of each step")
    print(f"{'devices':>9}{'whole':>12}{'split, held':>14}{'in a step':>12}{'sent':>9}{'its part of a state':>22}")
    for devices in (1, 8, 64, 1024):
        whole, kept = (held(NETWORK, 0, devices, split=split) for split in (False, True))
        values = (
            whole,
            kept,
            kept + (gathered(NETWORK, split=True) if devices > 1 else 0),
            sent(NETWORK, devices),
            16 * NETWORK / devices,
        )
        print(
            f"{devices:9d}"
            + "".join(f"{value / GIB:{width}.2f}" for value, width in zip(values, (12, 14, 12, 9, 22), strict=True))
        )


def _counted(processes: int, kind: str) -> dict[str, int]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XHAT_SCALE": str(Path(place) / "found.json")}
        subprocess.run(
            [*launcher, __file__, "--worker", kind],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        found: dict[str, int] = json.loads((Path(place) / "found.json").read_text())
        return found


def _work(*, split: bool) -> None:
    torch.manual_seed(0)
    network = xhat.UNet(channels=1, size=32, widths=(32, 64, 128), blocks=(2, 2, 2))
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising(xhat.V))})
    options = Options(batch_size=8, max_steps=3, ema=0.1, shard=split, compile="off", optimizer=OptimizerConfig(muon_lr=0.02))
    setup = set_up(objective, from_tensors(torch.rand(64, 1, 32, 32) * 2 - 1), options)
    stop = Stop()
    loop = Loop(setup, stop, 0.0)
    loop.gradients()  # the first step measures buckets
    loop.update()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        loop.gradients()
    state = setup.state
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    loop.update()
    average = [] if state.average is None else list(state.average.parameters())
    states = [v for o in state.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    mine = sum(part(x).nbytes for x in (*objective.parameters(), *gradients, *average, *states))
    muon = sum(
        p.numel() for o in state.optimizers if "muon" in type(o).__name__.lower() for g in o.param_groups for p in g["params"]
    )
    all_of_them = from_all(mine)
    world = len(all_of_them)
    asked = SPLIT if split else WHOLE
    buffers = [asked[event.name] * _largest(event.input_shapes) for event in seen.events() if event.name in asked]
    found = {
        "weights": sum(p.numel() for p in network.parameters()),
        "muon": muon,
        "held": sum(all_of_them) / world,
        "sent": (world - 1) / world * sum(buffers),
    }
    if setup.accelerator.is_main_process:
        Path(os.environ["XHAT_SCALE"]).write_text(json.dumps(found))
    stop.restore()
    loop.end()


def _largest(shapes: object) -> int:
    """Bytes of the largest tensor that an operator was given: the whole of what is gathered or reduced, float32."""
    return max((4 * torch.Size(shape).numel() for shape in _flat(shapes)), default=0)


def _flat(shapes: object) -> Iterator[list[int]]:
    if isinstance(shapes, list) and shapes and all(isinstance(n, int) for n in shapes):
        yield shapes
    elif isinstance(shapes, list):
        for each in shapes:
            yield from _flat(each)


if __name__ == "__main__":
    main()
