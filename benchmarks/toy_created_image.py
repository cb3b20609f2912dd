"""May I add lambda · L'(image) to the noise loss, and on which image? A 2-D toy whose density is known.

usage: python benchmarks/toy_created_image.py [--gap] [--out FOLDER]

Eight Gaussians on a ring, points (B, 1, 1, 2). A network learns them by the noise loss alone; from there every objective
trains on for equally many steps with the same draws and adds the penalty relu(x - c)² of an image estimate. Measured on
samples of 50 Heun steps: the penalty, and how far from the data they are. A smaller penalty is another distribution: of all
with the same mean penalty, data tilted by exp(-a penalty) has the least KL to the data, so a perfect method pays that. Then
some of them with a penalty that is not convex, (|x|² - r²)². Before, without training: with the exact p(x0 | z), the penalty
of its mean against the mean penalty of its samples (the Jensen gap).
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from usage import guarded

import xhat
from xhat import DDIM, Denoising, FullChain, ImageLoss, Last, OneStep, ReFL, Rollout, Surrogate, Term, V
from xhat.evaluation.pictures import COLORS, GREY
from xhat.losses.image import ImageEstimate
from xhat.objective.gates import Gate, always, every, reweighted
from xhat.objective.multipliers import DualAscent
from xhat.sampling.differentiate import AllSteps, Differentiation
from xhat.sampling.samplers import Heun, Sampler

MODES, RADIUS, STD, EDGE = 8, 0.7, 0.1, 0.5  # EDGE is c
ANGLES = torch.arange(MODES, dtype=torch.float64) * 2 * math.pi / MODES
MEANS = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LAMBDAS = (2.0, 20.0)
FIRST, MORE = 8000, 250  # training steps without and with the penalty, of 256 and 128 points
POINTS, CHAIN = 4000, 20  # samples measured; DDIM steps of the chains in training
LINES = torch.stack([f(torch.arange(32, dtype=torch.float64) * math.pi / 32) for f in (torch.cos, torch.sin)])
BLUE, RED, GREEN, VIOLET = COLORS

Row = dict[str, float]
Penalty = Callable[[Tensor], Tensor]


def ring(n: int, generator: torch.Generator) -> Tensor:
    """n points of the data, (n, 2) float64."""
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return MEANS[torch.randint(MODES, (n,), generator=generator)] + STD * noise


def log_density(x: Tensor) -> Tensor:
    """log p(x) of the data, (B,)."""
    squares = ((x[:, None] - MEANS) ** 2).sum(2) / STD**2
    return (-0.5 * squares).logsumexp(1) - math.log(MODES * 2 * math.pi * STD**2)


def beyond(images: Tensor) -> Tensor:
    """relu(x - c)², (B,): convex and smooth."""
    return (images[..., 0].flatten() - EDGE).clamp(min=0) ** 2


def off_ring(images: Tensor) -> Tensor:
    """(|x|² - r²)², (B,): not convex, and large where the ring has its mean."""
    return ((images.flatten(1) ** 2).sum(1) - RADIUS**2) ** 2


class Net(nn.Module):
    """net(z, t) for points (B, 1, 1, 2): a perceptron on z and a few waves of t."""

    frequencies: Tensor

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(5))
        hidden = [m for size in (13, width, width) for m in (nn.Linear(size, width), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * self.frequencies
        out: Tensor = self.layers(torch.cat([z.flatten(1), t[:, None], waves.sin(), waves.cos()], 1))
        return out.reshape(z.shape)


@dataclass(frozen=True)
class Method:
    """A way to add the penalty: on which image, with which weight over noise levels, at which steps; and how it is drawn."""

    image: ImageEstimate | None
    color: str = GREY
    marker: str = "o"
    weight: xhat.Weighting | None = None
    when: Gate = always

    def terms(self, penalty: Penalty, factor: float | DualAscent) -> Mapping[str, Term]:
        """The objective's terms, with lambda = factor."""
        base = {"denoise": Term(Denoising())}
        if self.image is None:
            return base
        return {**base, "extra": Term(ImageLoss(penalty, self.image, self.weight), factor, self.when)}


def chain(differentiate: Differentiation) -> FullChain:
    """A chain from pure noise, so small that it can keep its activations."""
    return FullChain(DDIM(), CHAIN, differentiate, checkpoint=False)


BASE, DUAL = "base alone", "last 5, DualAscent"
METHODS = {
    BASE: Method(None, marker="D"),
    "one step, uniform": Method(OneStep(), BLUE, "s", xhat.weightings.between(-math.inf, math.inf)),
    "one step, gated": Method(OneStep(), BLUE, "o"),
    "rollout of 4, last 1": Method(Rollout(DDIM(), 4, Last(1)), RED, "o"),
    "chain, last 1": Method(chain(Last(1)), GREEN, "o"),
    "chain, last 5": Method(chain(Last(5)), GREEN, "s"),
    "chain, all": Method(chain(AllSteps()), GREEN, "^"),
    "chain, last 1, 4th": Method(chain(Last(1)), GREEN, "v", when=reweighted(every(4))),
    "chain, Surrogate(2)": Method(chain(Surrogate(2)), VIOLET, "o"),
    "chain, ReFL(5)": Method(chain(ReFL(5)), VIOLET, "s"),
    DUAL: Method(chain(Last(5)), "black", "*"),
}


def train(
    start: xhat.Denoiser, terms: Mapping[str, Term], steps: range, batch: int, lr: Callable[[float], float]
) -> tuple[xhat.Denoiser, float]:
    """A copy of the denoiser, trained, and milliseconds a step: the median of means over 4. Draws depend on the step alone."""
    denoiser = copy.deepcopy(start)
    objective = xhat.Objective(denoiser, terms)
    optimizer = torch.optim.Adam(denoiser.parameters())
    seconds = []
    for step in steps:
        began = time.perf_counter()
        points = ring(batch, torch.Generator().manual_seed(step)).float().reshape(-1, 1, 1, 2)
        optimizer.param_groups[0]["lr"] = lr((step - steps.start) / len(steps))
        optimizer.zero_grad()
        objective(points, step=step)["loss"].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return denoiser, statistics.median(250 * sum(seconds[i : i + 4]) for i in range(0, len(seconds) - 3, 4))


@torch.no_grad()
def generate(denoiser: xhat.Denoiser, sampler: Sampler, steps: int) -> Tensor:
    """Samples of the model, always from the same noise, (POINTS, 2) float64."""
    z = xhat.sampling.sample.prior(denoiser, (POINTS, 1, 1, 2), torch.Generator().manual_seed(5))
    return xhat.sample(denoiser, sampler, z, xhat.uniform_times(denoiser.schedule, steps)).reshape(-1, 2).double()


def kl_to_data(x: Tensor, k: int = 4) -> float:
    """KL(samples || data) in nats: the density of the data is known, the samples' entropy is Kozachenko and Leonenko's."""
    r = torch.cdist(x, x).topk(k + 1, largest=False).values[:, k]
    n = torch.tensor([len(x), k], dtype=x.dtype).digamma()
    return float(n[1] - n[0] - math.log(math.pi) - 2 * r.log().mean() - log_density(x).mean())


def measure(x: Tensor, penalty: Penalty, quantiles: Tensor, kl: float | None = None) -> Row:
    """What is printed of samples; `quantiles` are the data's on LINES, (POINTS, 32)."""
    distance = (x[:, None] - MEANS).norm(dim=2)
    return {
        "penalty": 1e3 * float(penalty(x).mean()),
        "kl": kl_to_data(x) if kl is None else kl,
        "wasserstein": float(((x @ LINES).sort(0).values - quantiles).abs().mean()),
        "nll": -float(log_density(x).mean()),
        "modes": float(((distance < 3 * STD).double().mean(0) > 0.25 / MODES).sum()),
        "rarest": float(distance.argmin(1).bincount(minlength=MODES).min()) * MODES / len(x),
    }


def tilted(pool: Tensor, penalty: Penalty, quantiles: Tensor) -> list[Row]:
    """Data tilted by exp(-a penalty) for growing a: KL = -a E[penalty] - log Z; the rest from points kept by rejection."""
    found, own, each = [], torch.Generator().manual_seed(6), penalty(pool)
    for a in (0.0, *torch.logspace(0.6, 3.4, 15).tolist()):
        keep = torch.exp(-a * each)
        mean = float((keep * each).sum() / keep.sum())
        accepted = pool[torch.rand(len(pool), generator=own) < keep]
        kl = -a * mean - math.log(float(keep.mean()))
        runs = [measure(x, penalty, quantiles, kl) for x in accepted.split(POINTS)[:4]]
        found.append({name: statistics.mean(r[name] for r in runs) for name in runs[0]} | {"penalty": 1e3 * mean})
    return found


def at_penalty(curve: list[Row], penalty: float) -> Row:
    """The tilted data of that mean penalty, interpolated; the data itself above its own."""
    curve = curve[::-1]
    return {name: float(np.interp(penalty, [r["penalty"] for r in curve], [r[name] for r in curve])) for name in curve[0]}


def show(name: str, row: Row, curve: list[Row], factor: float | None = None, ms: float | None = None) -> None:
    """A row of the table."""
    print(
        f"{name:20} {'' if factor is None else f'{factor:.3g}':>6} {row['penalty']:8.2f} {row['kl']:7.3f} "
        f"{at_penalty(curve, row['penalty'])['kl']:7.3f} {row['wasserstein']:7.4f} {row['nll']:7.2f} {row['modes']:6.0f} "
        f"{row['rarest']:7.2f} {'' if ms is None else f'{ms:7.1f}'}",
        flush=True,
    )


@dataclass(frozen=True)
class Study:
    """What was measured with a penalty: each method's rows over lambda, tilted data, and as many points of the data itself."""

    rows: Mapping[str, list[Row]]
    curve: list[Row]
    floor: Row


def study(start: xhat.Denoiser, title: str, penalty: Penalty, methods: Mapping[str, Method]) -> Study:
    """The table of the methods with a penalty."""
    own = torch.Generator().manual_seed(4)
    pool = ring(50 * POINTS, own)
    quantiles = (ring(20 * POINTS, own) @ LINES).sort(0).values.reshape(POINTS, 20, 32).mean(1)
    curve, floors = tilted(pool, penalty, quantiles), [measure(x, penalty, quantiles) for x in pool.split(POINTS)[:6]]
    floor = {name: statistics.mean(f[name] for f in floors) for name in floors[0]}
    noise = {name: statistics.stdev(f[name] for f in floors) for name in floor}
    print(
        f"\nPenalty {title}, not 0 on {float((penalty(pool) > 0).double().mean()):.1%} of the data\n"
        f"{'':20} {'lambda':>6} {'penalty':>8} {'KL':>7} {'tilted':>7} {'SW':>7} {'-log p':>7} {'modes':>6} {'rarest':>7} "
        f"{'ms/step':>7}"
    )
    show("data (noise floor)", floor, curve)
    for share in (0.5, 0.25, 0.1):
        show("tilted data", at_penalty(curve, share * curve[0]["penalty"]), curve)
    rows: dict[str, list[Row]] = {}
    for name, method in methods.items():
        factors: list[float | DualAscent] = [0.0] if name == BASE else list(LAMBDAS)
        if name == DUAL:  # its price, lambda · limit, is about 0.005 here: the default rate of 0.01 a step would swing
            factors = [DualAscent(0.5e-3 * rows[BASE][0]["penalty"], rate=5e-4)]
        for factor in factors:
            more = range(FIRST, FIRST + MORE)
            denoiser, ms = train(start, method.terms(penalty, factor), more, 128, lambda share: 1e-3 * (1 - share))
            rows.setdefault(name, []).append(measure(generate(denoiser, Heun(), 50), penalty, quantiles))
            show(name, rows[name][-1], curve, float(factor()) if isinstance(factor, DualAscent) else factor, ms)
            if isinstance(factor, DualAscent):
                held = [1e3 * float(penalty(generate(d, DDIM(), CHAIN)).mean()) for d in (start, denoiser)]
                print(
                    f"DualAscent holds the training chain's mean: on samples of {CHAIN} DDIM steps it is {held[1]:.2f}, the "
                    f"limit {1e3 * factor.limit:.2f}, the base's {held[0]:.2f}"
                )
    print(f"Noise of one row: penalty {noise['penalty']:.2f}, KL {noise['kl']:.3f}, SW {noise['wasserstein']:.4f}")
    return Study(rows, curve, floor)


def save_studies(path: Path, convex: Study, other: Study) -> None:
    """A PNG of penalty against distance to the data, a short line per method over lambda."""
    figure = Figure(figsize=(13.5, 4.4), layout="constrained")
    panels = [
        ("convex: KL(samples || data), nats", convex, "kl"),
        ("convex: sliced Wasserstein-1 to the data", convex, "wasserstein"),
        ("not convex: KL(samples || data), nats", other, "kl"),
    ]
    axes = figure.subplots(1, 3)
    for axis, (title, found, key) in zip(axes, panels, strict=True):
        tilt = "tilted data: the least possible KL"
        axis.plot([r["penalty"] for r in found.curve], [r[key] for r in found.curve], color=GREY, linestyle="--", label=tilt)
        axis.axhline(found.floor[key], color=GREY, linewidth=0.9, linestyle=":", label=f"{POINTS} points of the data")
        for name, rows in found.rows.items():
            look, size = METHODS[name], 13 if name == DUAL else 7
            x, y = [r["penalty"] for r in rows], [r[key] for r in rows]
            axis.plot(x, y, color=look.color, marker=look.marker, markersize=size, alpha=0.85, linewidth=1.2, label=name)
        axis.set(xlim=(0, None), ylim=(0, 1.08 * max(r[key] for rows in found.rows.values() for r in rows)))
        finish(axis, title, f"mean penalty of samples, {'(|x|² - r²)²' if found is other else 'relu(x - c)²'}, in 1e-3")
    handles, labels = axes[0].get_legend_handles_labels()
    lines = f"lambda = {LAMBDAS[0]:g} on the right, {LAMBDAS[1]:g} on the left"
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, title=lines, title_fontsize=9)
    figure.savefig(path, dpi=130)


def finish(axis: Any, title: str, xlabel: str) -> None:
    """Titles, and the look of `xhat.evaluation.pictures`."""
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(xlabel)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def gap(penalty: Penalty, logsnr: float, n: int = 20_000) -> Row:
    """Over z, with exact posteriors: mean penalty of E[x0 | z] and of four samples of p(x0 | z), and ½ tr(H Var[x0 | z])."""
    same, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(round(100 + 10 * logsnr))
    schedule = xhat.Cosine()
    t = schedule.t_of(torch.tensor([logsnr], dtype=torch.float64))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    z = alpha * ring(n, same) + sigma * torch.randn(n, 2, generator=same, dtype=torch.float64)
    v = alpha**2 * STD**2 + sigma**2
    shares = (-0.5 * ((z[:, None] - alpha * MEANS) ** 2).sum(2) / v).softmax(1)
    means, variance = MEANS + alpha * STD**2 / v * (z[:, None] - alpha * MEANS), STD**2 * sigma**2 / v
    mean = (shares[..., None] * means).sum(1)
    spread = means - mean[:, None]
    covariance = torch.einsum("bk,bki,bkj->bij", shares, spread, spread) + variance * torch.eye(2, dtype=torch.float64)
    hessian = torch.func.vmap(torch.func.hessian(lambda x: penalty(x[None])[0]))(mean)
    mode = torch.multinomial(shares, 4, replacement=True, generator=own)
    drawn = means.gather(1, mode[..., None].expand(-1, -1, 2))
    drawn = drawn + variance.sqrt() * torch.randn(drawn.shape, generator=own, dtype=torch.float64)
    of_samples = penalty(drawn.reshape(-1, 2)).reshape(n, 4).mean(1)
    values = {"mean": penalty(mean), "samples": of_samples, "gap": of_samples - penalty(mean)}
    second, error = 0.5 * (hessian * covariance).sum((1, 2)).mean(), values["gap"].std() / math.sqrt(n)
    return {name: 1e3 * float(x.mean()) for name, x in {**values, "second": second, "error": error}.items()}


def jensen(out: Path | None) -> None:
    """The table of the Jensen gap over noise levels, and its picture."""
    penalties: dict[str, Penalty] = {
        "convex: relu(x - c)²": beyond,
        "linear: x - c": lambda x: x[:, 0] - EDGE,
        "not convex: (|x|² - r²)²": off_ring,
    }
    levels = [-6 + 0.5 * i for i in range(33)]
    found = {name: [gap(penalty, level) for level in levels] for name, penalty in penalties.items()}
    print("Jensen gap with the exact posterior, in 1e-3: mean penalty of samples of p(x0 | z) less the penalty of its mean")
    for name, rows in found.items():
        print(f"\n{name:26} {'of the mean':>12} {'of samples':>11} {'gap ± error':>18} {'½ tr(H Var)':>12} {'short by':>9}")
        for level, r in zip(levels, rows, strict=True):
            if level % 2 == 0:
                values = f"{r['mean']:12.3f} {r['samples']:11.3f} {r['gap']:10.3f} ± {r['error']:5.3f} {r['second']:12.3f}"
                short = f"{r['gap'] / r['samples']:9.0%}" if name.startswith("convex") else ""
                print(f"{f'logsnr {level:+.0f}':>26} {values} {short}")
    print(
        "\nConvex: the mean's penalty is a lower bound, blind at high noise. From logsnr +2 on ½ tr(H Var) is nearly all of\n"
        "the gap, which in the end falls as 1/SNR. Linear: no gap at any noise level. Not convex: no bound, either sign."
    )
    if out is None:
        return
    figure = Figure(figsize=(4.6, 8.6), layout="constrained")  # as wide as a phone
    for axis, (name, rows) in zip(figure.subplots(3, 1), found.items(), strict=True):
        gate = xhat.weightings.high_snr()(torch.tensor(levels), xhat.Cosine())
        look = {"color": GREY, "alpha": 0.14, "linewidth": 0, "label": "high_snr(), the default weighting"}
        axis.fill_between(levels, 0, gate, transform=axis.get_xaxis_transform(), **look)
        axis.plot(levels, [r["samples"] for r in rows], color=BLUE, linewidth=1.8, label="mean penalty of samples of p(x0 | z)")
        axis.plot(levels, [r["mean"] for r in rows], color=RED, linewidth=1.8, label="penalty of the mean E[x0 | z]")
        guess = [r["mean"] + r["second"] for r in rows]
        axis.plot(levels, guess, color="black", linestyle=":", linewidth=1.4, label="of the mean + ½ tr(H Var[x0 | z])")
        finish(axis, f"{name}, in 1e-3", "logsnr (noise on the left, data on the right)")
        if name.startswith("linear"):
            axis.set_ylim(-1000, 0)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    figure.savefig(out / "jensen-gap.png", dpi=180)


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser(description="lambda · L'(image) on a 2-D toy of known density")
    parser.add_argument("--out", type=Path, help="folder for toy-created-image.png and jensen-gap.png")
    parser.add_argument("--gap", action="store_true", help="the Jensen gap alone, in seconds: nothing is trained")
    options = parser.parse_args()
    out: Path | None = options.out
    torch.set_num_threads(1)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    jensen(out)
    if options.gap:
        return
    print(
        f"\nTraining: {FIRST} steps on the noise loss, then {MORE} with the penalty; chains have {CHAIN} DDIM steps.\n"
        f"Measured on {POINTS} samples of 50 Heun steps. penalty: mean, in 1e-3. KL: (samples || data) in nats, then what\n"
        "tilted data of that penalty pays. SW: sliced Wasserstein-1 to the data. modes: with a quarter of their share or\n"
        "more. rarest: share of the rarest mode, of 1/8."
    )
    torch.manual_seed(0)
    start = xhat.Denoiser(Net(), xhat.Cosine(), V)
    base = METHODS[BASE].terms(beyond, 0.0)
    start, _ = train(start, base, range(FIRST), 256, lambda share: 4e-3 * (1 - 0.8 * share))
    convex = study(start, f"relu(x - {EDGE})²", beyond, METHODS)
    few = (BASE, "one step, uniform", "one step, gated", "rollout of 4, last 1", "chain, last 1")
    other = study(start, f"(|x|² - {RADIUS}²)²", off_ring, {name: METHODS[name] for name in few})
    if out is not None:
        save_studies(out / "toy-created-image.png", convex, other)


if __name__ == "__main__":
    guarded(main)
