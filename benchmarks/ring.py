"""Every way to follow a penalty, where the best there is is known: a ring of Gaussians, at equal compute and equal reward.

usage: python benchmarks/ring.py [--budget 3000] [--seeds 3] [--picture FILE.png]

From one trained network every way goes on for the same number of network calls of 128 points, a backward pass counted as two,
with five strengths. A smaller penalty is another distribution: the least KL to the data that it can have is that of the data
tilted by exp(-a penalty). So what a way loses is its KL less that, and ways can be compared at equal penalty. Guidance while
sampling takes no training: the same network, other samples, at the calls that are printed.
"""

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from toy_created_image import (
    EDGE,
    FIRST,
    LINES,
    METHODS,
    POINTS,
    Net,
    Row,
    at_penalty,
    beyond,
    finish,
    generate,
    measure,
    ring,
    tilted,
    train,
)
from usage import count, guarded

import xhat
from xhat import (
    DDIM,
    DDPM,
    AdjointMatching,
    Denoising,
    FullChain,
    ImageLoss,
    Last,
    OneStep,
    PolicyGradient,
    ReFL,
    Surrogate,
    Term,
)
from xhat.bound.student import student
from xhat.evaluation.pictures import COLORS, GREY
from xhat.losses.rewards import BoundLikelihood, Centred, StepLikelihood
from xhat.sampling.differentiate import AllSteps, Bridge, Differentiation, DRTune, Lagrange, LeapAlign, LowVariance
from xhat.sampling.samplers import Heun, Sampler
from xhat.sampling.steering import DPS, MPGD

BATCH, CHAIN, STRENGTHS = 128, 20, (0.25, 1.0, 4.0, 16.0, 64.0)
SHARES = (0.5, 0.1)  # of the data's penalty, at which ways are compared


class Counted(Net):
    """The toy's network, which counts its calls of 128 points: one forward, two more for a backward pass."""

    calls: float = 0.0

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        out = super().forward(z, t)
        Counted.calls += len(z) / BATCH
        if out.requires_grad:
            out.register_hook(self._back)
        return out

    @staticmethod
    def _back(gradient: Tensor) -> None:
        Counted.calls += 2 * len(gradient) / BATCH


@dataclass(frozen=True)
class Way:
    """A way to follow the penalty: terms to train on with a strength, or a sampler to draw with."""

    terms: Callable[[float], Mapping[str, Term]] | None = None
    sampler: Callable[[float], Sampler] | None = None
    color: str = GREY
    strengths: tuple[float, ...] = STRENGTHS


def beside_the_base(loss: xhat.Loss, color: str, strengths: tuple[float, ...] = STRENGTHS) -> Way:
    """The noise loss, and strength times another."""
    return Way(lambda s: {"denoise": Term(Denoising()), "extra": Term(loss, s)}, color=color, strengths=strengths)


def chain(differentiate: Differentiation) -> Way:
    """Through a chain of DDIM steps from pure noise."""
    along = FullChain(DDIM(), CHAIN, differentiate, checkpoint=False)
    return beside_the_base(ImageLoss(beyond, along), GREEN)


def less(images: Tensor) -> Tensor:
    """The reward: minus the penalty, in the data's own type."""
    return -beyond(images)


def matching(strength: float) -> Mapping[str, Term]:
    """Adjoint matching by itself: its optimum is the tilt by exp(-strength · penalty)."""
    return {"match": Term(AdjointMatching(ImageLoss(beyond, FullChain(DDPM(), CHAIN)), copy.deepcopy(START[0]), strength))}


BLUE, RED, GREEN, VIOLET = COLORS
START: list[xhat.Denoiser] = []
EVERYWHERE = xhat.weightings.between(-float("inf"), float("inf"))
WAYS = {
    "one step, uniform": beside_the_base(ImageLoss(beyond, OneStep(), EVERYWHERE), BLUE),
    "one step, gated": beside_the_base(ImageLoss(beyond, OneStep()), BLUE, (16.0, 64.0, 256.0, 1024.0, 4096.0)),
    "last 1": chain(Last(1)),
    "last 5": chain(Last(5)),
    "all steps": chain(AllSteps()),
    "low variance": chain(LowVariance()),
    "ReFL(5)": chain(ReFL(5)),
    "DRTune(2)": chain(DRTune(2)),
    "leaps": chain(LeapAlign()),
    "surrogate(2)": chain(Surrogate(2)),
    "bridge(2)": chain(Bridge(2)),
    "Lagrange(2)": chain(Lagrange(2)),
    "Lagrange(3)": chain(Lagrange(3)),
    "adjoint matching": Way(matching, color=VIOLET, strengths=(16.0, 64.0, 128.0, 256.0, 512.0)),
    "policy, bound": beside_the_base(
        PolicyGradient(less, BoundLikelihood(4), FullChain(DDIM(), CHAIN), advantage=Centred()), VIOLET
    ),
    "policy, steps": beside_the_base(
        PolicyGradient(less, StepLikelihood(4), FullChain(DDPM(), CHAIN), advantage=Centred()), VIOLET
    ),
    "policy, bound, reused": beside_the_base(
        PolicyGradient(less, BoundLikelihood(4), FullChain(DDIM(), CHAIN), advantage=Centred(), reuse=4, clip=0.2), VIOLET
    ),
    "policy, steps, reused": beside_the_base(
        PolicyGradient(less, StepLikelihood(4), FullChain(DDPM(), CHAIN), advantage=Centred(), reuse=4, clip=0.2), VIOLET
    ),
    "DPS": Way(sampler=lambda s: DPS(beyond, s).around(DDIM()), color=RED, strengths=(0.01, 0.02, 0.05, 0.1, 0.2)),
    "MPGD": Way(sampler=lambda s: MPGD(beyond, s).around(DDIM()), color=RED, strengths=(0.5, 1.0, 2.0, 3.0, 4.0)),
}


def trained(terms: Mapping[str, Term], budget: int, seed: int) -> tuple[xhat.Denoiser, int]:
    """START's copy, trained until so many calls are made, and its steps; as in the toy, with a rate that falls to 0."""
    denoiser = copy.deepcopy(START[0])
    objective = xhat.Objective(denoiser, terms, seed=seed)
    optimizer = torch.optim.Adam(denoiser.parameters())
    own, step, first = torch.Generator().manual_seed(1000 + seed), FIRST, Counted.calls
    while (spent := Counted.calls - first) < budget:
        points = ring(BATCH, own).float().reshape(-1, 1, 1, 2)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - spent / budget)
        optimizer.zero_grad()
        objective(points, step=step)["loss"].backward()
        optimizer.step()
        step += 1
    return denoiser, step - FIRST


def rows_of(way: Way, budget: int, seed: int, quantiles: Tensor) -> Iterator[tuple[float, Row]]:
    """Strength and what was measured of samples."""
    for strength in way.strengths:
        if way.terms is not None:
            denoiser, steps = trained(way.terms(strength), budget, seed)
            x, calls = generate(denoiser, Heun(), 50), float(steps)
        else:
            assert way.sampler is not None
            before = Counted.calls
            z = xhat.sampling.sample.prior(START[0], (POINTS, 1, 1, 2), torch.Generator().manual_seed(5 + seed))
            times = xhat.uniform_times(START[0].schedule, 100)
            x = xhat.sample(START[0], way.sampler(strength), z, times).reshape(-1, 2).double().detach()
            calls = Counted.calls - before
        yield strength, {**measure(x, beyond, quantiles), "calls": calls}


def loss_at(rows: list[Row], base: Row, curve: list[Row], penalty: float) -> float:
    """KL above the tilted data's at a penalty, from the base over growing strengths; NaN where it is not reached."""
    path = [base, *rows]
    for before, after in itertools.pairwise(path):
        if before["penalty"] >= penalty >= after["penalty"]:
            share = (before["penalty"] - penalty) / max(before["penalty"] - after["penalty"], 1e-12)
            return before["kl"] + share * (after["kl"] - before["kl"]) - at_penalty(curve, penalty)["kl"]
    return float("nan")


def compared(share: float, found: Mapping[str, list[float]]) -> None:
    """Ways in the order of what they lose at equal penalty; which of them are not to be told from the best, by seed."""
    known = {name: values for name, values in found.items() if not any(np.isnan(values))}
    order = sorted(known, key=lambda name: statistics.fmean(known[name]))
    print(
        f"\nKL above the least possible, at {share:g} of the data's penalty: mean over seeds, = not to be told from the first"
    )
    for name in order:
        tie = ""
        if name != order[0] and len(known[name]) > 1:
            apart = [a - b for a, b in zip(known[name], known[order[0]], strict=True)]
            far = student(len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
            tie = " =" if abs(statistics.fmean(apart)) <= far else ""
        print(f"{name:21} {statistics.fmean(known[name]):7.3f}{tie}")
    if missed := [name for name in found if name not in known]:
        print(f"not reached in this compute, with these strengths: {', '.join(missed)}")


def over_seeds(seeds: list[list[Row]], number: int) -> Row:
    """The mean over seeds of what was measured with strength number."""
    return {key: statistics.fmean(rows[number][key] for rows in seeds) for key in seeds[0][number]}


def picture(path: Path, rows: Mapping[str, list[list[Row]]], curve: list[Row], base: Row) -> None:
    """KL over penalty, a line for each way, and the least KL possible."""
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([r["penalty"] for r in curve], [r["kl"] for r in curve], color="black", linestyle="--", label="least possible")
    looks = {color: iter("os^vDP*Xhd<>p") for color in (BLUE, RED, GREEN, VIOLET, GREY)}
    for name, seeds in rows.items():
        mean = [
            base,
            *({k: statistics.fmean(one[i][k] for one in seeds) for k in ("penalty", "kl")} for i in range(len(seeds[0]))),
        ]
        x, y = [r["penalty"] for r in mean], [r["kl"] for r in mean]
        color = WAYS[name].color
        axis.plot(x, y, color=color, marker=next(looks[color]), markersize=5, linewidth=1, alpha=0.85, label=name)
    for share in SHARES:
        axis.axvline(share * curve[0]["penalty"], color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1.1 * base["penalty"]), ylim=(0, 0.7))
    finish(
        axis,
        "KL(samples || data), nats: lower is nearer to the data",
        "mean penalty of samples, in 1e-3: left is what was asked for",
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    """The table, and the picture."""
    parser = argparse.ArgumentParser(description="ways to follow a penalty at equal compute and equal reward, on a ring")
    parser.add_argument(
        "--budget", type=count, default=3000, help="network calls of 128 points, a backward pass counted as two"
    )
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = xhat.Denoiser(Counted(), xhat.Cosine(), xhat.V)
    start, _ = train(start, METHODS["base alone"].terms(beyond, 0.0), range(FIRST), 256, lambda share: 4e-3 * (1 - 0.8 * share))
    START.append(start)
    own = torch.Generator().manual_seed(4)
    pool = ring(50 * POINTS, own)
    quantiles = (ring(20 * POINTS, own) @ LINES).sort(0).values.reshape(POINTS, 20, 32).mean(1)
    curve = tilted(pool, beyond, quantiles)
    alone, _ = trained({"denoise": Term(Denoising())}, options.budget, 0)
    base = measure(generate(alone, Heun(), 50), beyond, quantiles)
    print(
        f"Penalty relu(x - {EDGE})², {curve[0]['penalty']:.2f}e-3 on the data; {options.budget:,} calls of {BATCH} points,\n"
        f"{options.seeds} seeds, chains of {CHAIN} steps. "
        f"In each cell: penalty in 1e-3, KL(samples || data) in nats, at growing strengths. Base alone: {base['penalty']:.2f} "
        f"{base['kl']:.3f}.\n\n{'':21} {'steps':>6}   " + "   ".join(f"{f'strength {i}':>12}" for i in range(1, 6))
    )
    rows: dict[str, list[list[Row]]] = {}
    for name, way in WAYS.items():
        rows[name] = [[r for _, r in rows_of(way, options.budget, seed, quantiles)] for seed in range(options.seeds)]
        mean = [over_seeds(rows[name], i) for i in range(5)]
        cells = "   ".join(f"{r['penalty']:6.2f} {r['kl']:5.2f}" for r in mean)
        spent = f"{mean[0]['calls']:6.0f}" if way.terms else f"{mean[0]['calls']:5.0f}*"
        print(f"{name:21} {spent}   {cells}", flush=True)
    print(f"* not trained: calls for {POINTS} samples, where {POINTS} samples of the others take {POINTS / BATCH * 100:.0f}")
    for share in SHARES:
        asked = share * curve[0]["penalty"]
        compared(share, {name: [loss_at(one, base, curve, asked) for one in rows[name]] for name in WAYS})
    if options.picture:
        picture(options.picture, rows, curve, base)


if __name__ == "__main__":
    guarded(main)
