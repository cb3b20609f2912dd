"""Which number ranks the checkpoints of one training as FID does: the raw loss, or the held-out error on the common scale?

usage: python benchmarks/which_checkpoint.py [--steps N] [--every N] [--samples N]

A training of digits, a small U-Net told the label; then the same model tuned for a third of the steps with a strong loss on the
created image, its total variation at all noise levels. Every so many steps: FID of samples of the averaged weights, bits/dim of
held-out digits (`xhat.validate`), the training loss of that step, and its mean since the checkpoint before. Then Spearman's
rank correlation of each with FID; 1 ranks alike, -1 the other way round.
"""

import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr
from usage import Parser, count, guarded

import xhat
from xhat.config.config import Config
from xhat.config.data import Data, build_data
from xhat.config.options import OptimizerConfig
from xhat.diffusion.weightings import between
from xhat.evaluation.quality import Features
from xhat.training.callbacks import Moment

TUNED = 1.0
NAMES = ("loss of the step", "mean loss since", "bits/dim, held out")


class Look(xhat.Callback):
    """Measures at every checkpoint."""

    def __init__(self, samples: int, data: Data, features: Features) -> None:
        assert data.images is not None
        assert data.images.held_out is not None
        self.samples, self.data, self.features = samples, data, features
        self.real = features.of(data.images.held_out.pixels)
        self.losses: list[float] = []
        self.rows: list[tuple[int, float, float, float, float]] = []

    def step(self, at: Moment) -> None:
        self.losses.append(float(at.losses["loss"]))

    def saved(self, at: Moment) -> None:
        training = at.denoiser.training
        times = xhat.uniform_times(at.denoiser.schedule, 20)
        drawn, _ = xhat.generate(at.denoiser.eval(), xhat.DDIM(), self.data.shape, self.samples, times=times)
        bits = xhat.validate(at.denoiser, self.data.held_out, most=200).bits_per_dim
        at.denoiser.train(training)
        fid = self.features.compare(self.features.of(drawn), self.real).distance.fid
        self.rows.append((at.step, fid, self.losses[-1], sum(self.losses) / len(self.losses), bits))
        self.losses = []
        print("{:6d}  {:8.2f}  {:16.4f}  {:15.4f}  {:18.4f}".format(*self.rows[-1]), flush=True)


def main() -> None:
    """Train, measure, correlate."""
    parser = Parser(description="which number ranks checkpoints as FID does")
    parser.add_argument("--steps", type=count, default=1500, help="of the training")
    parser.add_argument("--every", type=count, default=100, help="steps between checkpoints")
    parser.add_argument("--samples", type=count, default=1000, help="for FID")
    options = parser.parse_args()
    data = build_data(Config(labels=True))
    torch.manual_seed(0)
    net = xhat.UNet(channels=1, widths=(16, 32), blocks=(1, 2), classes=data.shape.classes)
    base = {"denoise": xhat.Term(xhat.Denoising(xhat.V))}
    smooth = xhat.ImageLoss(xhat.penalties.total_variation, weighting=between(-99, 99))
    denoiser = xhat.Denoiser(net, xhat.Cosine(), xhat.V)
    features = Features.shipped(data.shape)
    assert features is not None
    look = Look(options.samples, data, features)
    steps, every = options.steps, options.every
    plain = followed(xhat.Objective(denoiser, base), look, steps, every, OptimizerConfig(muon_lr=0.02), "training")
    terms = {**base, "smooth": xhat.Term(smooth, weight=TUNED)}
    slow = OptimizerConfig(lr=5e-5, muon_lr=3e-4)
    tuned = followed(xhat.Objective(denoiser, terms), look, max(1, steps // 3), max(1, every // 3), slow, "tuning")
    show(plain, "training")
    show(plain[len(plain) // 2 :], "training, the later half")
    show(tuned, "tuning")


def followed(
    objective: xhat.Objective, look: Look, steps: int, every: int, optimizer: OptimizerConfig, what: str
) -> list[tuple[int, float, float, float, float]]:
    """Train, and what was seen at the checkpoints."""
    options = xhat.Options(
        max_steps=steps,
        checkpoint_every=every,
        sample_every=10**6,
        eval_every=0,
        batch_size=64,
        compile="off",
        optimizer=optimizer,
    )
    look.rows = []
    print(f"{what}\n{'step':>6}  {'FID':>8}  {NAMES[0]:>16}  {NAMES[1]:>15}  {NAMES[2]:>18}")
    with tempfile.TemporaryDirectory() as folder:
        xhat.fit(objective, look.data.train, Path(folder) / "run", callbacks=[look], options=options)
    print()
    return look.rows


def show(rows: list[tuple[int, float, float, float, float]], which: str) -> None:
    """Rank correlations with FID."""
    fid, *others = ([row[i] for row in rows] for i in range(1, 5))
    print(f"rank correlation with FID, {which}: {len(rows)} checkpoints")
    for name, values in zip(NAMES, others, strict=True):
        print(f"  {name:<18}  {spearmanr(fid, values).statistic:+.2f}")


if __name__ == "__main__":
    guarded(main)
