"""What a device holds and sends in training, by formula and as counted on 2 and 4 processes: python benchmarks/scale.py

With P weights, of which P_A are trained by Adam and P_M by Muon, B are in blocks, L in the largest, and N processes, in bytes:

whole   holds 4 P (weights) + 4 P (gradients) + 8 P_A + 4 P_M (optimizers) + 4 P (average)
split   holds the N-th part of all that; during a step all weights and their gradients beside, 8 P
blocks  holds the N-th part of all that; during a step what is in no block, and a block, 8 (P - B + L) beside, and the weights
        of the block that is to come, 4 L
each    sends and receives 2 (N - 1)/N 4 P a step: gradients all-reduced; or weights gathered, gradients reduced and scattered;
        blocks are gathered once more, to be differentiated: (N - 1)/N 4 B on top

Counted is what the tensors of a U-Net hold after a step, which weights are whole while a part of it is called or
differentiated, and the buffers that a step gives to the processes' library. A count that is more than 2 % beside its formula
ends with exit code 1. Then what a network of 10^9 weights, all of Adam's, 40 equal blocks, takes on more devices.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from usage import Parser

import xhat
from xhat.config.options import OptimizerConfig, Options
from xhat.data import from_tensors
from xhat.diffusion.sharded import blocks_of, is_split, part
from xhat.distributed import from_all
from xhat.training.loop import Loop
from xhat.training.setup import set_up
from xhat.training.stop import Stop

PROCESSES, KINDS, FAR, NETWORK, BLOCKS = (2, 4), ("whole", "split", "blocks"), 0.02, 10**9, 40
WHOLE, SPLIT = {"gloo:all_reduce": 2}, {"c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1}
"""What a step asks the library for, and how often a ring passes most of the buffer on. Gloo scatters by reducing, once more."""
GIB = 2**30


def held(weights: int, muon: int, processes: int, *, split: bool) -> float:
    """Bytes that a process holds between two steps."""
    return (20 * weights - 4 * muon) / (processes if split else 1)


def gathered(weights: int, in_blocks: int, largest: int, kind: str) -> float:
    """Bytes of weights that are whole at a time, in a step."""
    return 4 * (weights - in_blocks + largest if kind == "blocks" else weights)


def sent(weights: int, in_blocks: int, processes: int, kind: str) -> float:
    """Bytes that a process sends in a step, and receives."""
    return (processes - 1) / processes * 4 * (2 * weights + (in_blocks if kind == "blocks" else 0))


def main() -> None:
    parser = Parser(description="what a device holds and sends in training")
    parser.add_argument("--worker", choices=KINDS, help="as one of several processes, count and print")
    chosen = parser.parse_args().worker
    if chosen is not None:
        _work(chosen)
        return
    heads = "".join(f"{head:>12}{'formula':>12}" for head in ("held", "whole in it", "sent"))
    print(f"{'processes':>9} {'weights':>8}{heads}")
    far = False
    for processes in PROCESSES:
        for kind in KINDS:
            found = _counted(processes, kind)
            weights, muon, blocks = found["weights"], found["muon"], found["in_blocks"]
            pairs = (
                (found["held"], held(weights, muon, processes, split=kind != "whole")),
                (found["gathered"], gathered(weights, blocks, found["largest"], kind)),
                (found["sent"], sent(weights, blocks, processes, kind)),
            )
            far |= any(abs(count - formula) > FAR * formula for count, formula in pairs)
            print(f"{processes:9d} {kind:>8}" + "".join(f"{value / 2**20:8.2f} MiB" for pair in pairs for value in pair))
    if far:
        sys.exit(f"scale.py: a count is more than {FAR:.0%} beside its formula")
    print(f"\n{NETWORK:.0e} weights of Adam's in {BLOCKS} blocks, by formula; a device, in GiB, of each step")
    titles = ("whole", "split, held", "in a step", "by blocks", "sent", "by blocks", "its part of a state")
    widths = [max(len(head) + 3, 9) for head in titles]
    print(f"{'devices':>9}" + "".join(f"{head:>{width}}" for head, width in zip(titles, widths, strict=True)))
    for devices in (1, 8, 64, 1024):
        kept = held(NETWORK, 0, devices, split=True)
        values = (
            held(NETWORK, 0, devices, split=False),
            kept,
            kept + (2 * gathered(NETWORK, NETWORK, 0, "split") if devices > 1 else 0),  # and as many gradients
            kept + (3 * gathered(NETWORK, NETWORK, NETWORK // BLOCKS, "blocks") if devices > 1 else 0),  # and the next block
            sent(NETWORK, NETWORK, devices, "split"),
            sent(NETWORK, NETWORK, devices, "blocks"),
            16 * NETWORK / devices,
        )
        print(f"{devices:9d}" + "".join(f"{value / GIB:{width}.2f}" for value, width in zip(values, widths, strict=True)))


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


def _work(kind: str) -> None:
    torch.manual_seed(0)
    network = xhat.UNet(channels=1, size=32, widths=(32, 64, 128), blocks=(2, 2, 2))
    objective = xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), {"denoise": xhat.Term(xhat.Denoising(xhat.V))})
    seen_by_block = _blocks(network)
    shard: Literal["blocks"] | bool = "blocks" if kind == "blocks" else kind == "split"
    options = Options(batch_size=8, max_steps=3, ema=0.1, shard=shard, compile="off", optimizer=OptimizerConfig(muon_lr=0.02))
    setup = set_up(objective, from_tensors(torch.rand(64, 1, 32, 32) * 2 - 1), options)
    stop = Stop()
    loop = Loop(setup, stop, 0.0)
    loop.gradients()  # the first step measures buckets
    loop.update()
    whole = _whole_at_a_time(network)
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
    asked = WHOLE if kind == "whole" else SPLIT
    buffers = [asked[event.name] * _largest(event.input_shapes) for event in seen.events() if event.name in asked]
    found = {
        "weights": sum(p.numel() for p in network.parameters()),
        "muon": muon,
        **seen_by_block,
        "gathered": 4 * max(whole),
        "held": sum(all_of_them) / world,
        "sent": (world - 1) / world * sum(buffers),
    }
    if setup.accelerator.is_main_process:
        Path(os.environ["XHAT_SCALE"]).write_text(json.dumps(found))
    stop.restore()
    loop.end()


def _blocks(network: torch.nn.Module) -> dict[str, int]:
    """Weights in blocks, and in the largest one: with those that it lies in."""
    blocks = blocks_of(network)
    own = {id(block): sum(p.numel() for p in block.parameters()) for block in blocks}
    inside = {id(p) for block in blocks for p in block.parameters()}
    return {"in_blocks": sum(p.numel() for p in network.parameters() if id(p) in inside), "largest": max(own.values())}


def _whole_at_a_time(network: torch.nn.Module) -> list[int]:
    """A list that grows by the number of weights that are whole, whenever a part of the network is called or differentiated."""
    found: list[int] = []

    def look(*_: object) -> None:
        found.append(sum(p.numel() for p in network.parameters() if not is_split(p)))

    for module in network.modules():
        module.register_forward_pre_hook(look)
        module.register_full_backward_pre_hook(look)
    return found


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
