"""Network evaluations that the bound's estimate saves, beside the loop over all T steps that other code bases run.

usage: python benchmarks/bound.py RUN [IMAGES] [TRIALS] [SUMMED]

Prints, for 1 to 16 evaluations per image: how many fewer than T that is; the within-image noise as a multiple of that of the
full sum (one noise per step); by how much the noise of the draws inflates the standard error of the data set; and the mean's
offset from two full sums, which the first SUMMED images get (by default all).

Each trial has a pilot of its own, as large as a whole data set gets (its calls are printed; paid once, not per image).
The images are test images of the seeded permutation number 1: the control's features were chosen on the first 200 of number 0,
the shrinkage of its fit on training images that are not the pilot's.
"""

import math

import torch
from torch import Tensor
from usage import Parser, count, guarded

import xhat
from xhat.bound.density import MOST_DRAWS, Pilot
from xhat.bound.estimate import Progress, estimate_bound
from xhat.data.images import to_float
from xhat.data.load import load

CHOICE = 1  # of the images
CALLS = 1, 2, 4, 8, 16  # per image


def within(values: Tensor) -> float:
    """Variance between trials (trials, images), mean over images."""
    return float(values.var(0).mean())


def main() -> None:
    """The table."""
    parser = Parser()
    parser.add_argument("run", metavar="RUN")
    for name, default in {"images": 200, "trials": 4, "summed": 10**9}.items():
        parser.add_argument(name, nargs="?", type=count, default=default, metavar=name.upper())
    given = parser.parse_args()
    run, images, trials, summed = given.run, given.images, given.trials, given.summed
    trained = xhat.load(run)
    test, train = load("mnist", 28, "test"), load("mnist", 28, "train")
    chosen = torch.randperm(len(test.pixels), generator=torch.Generator().manual_seed(CHOICE))[:images]
    device = next(trained.denoiser.net.parameters()).device
    x0, pilot = to_float(test.pixels[chosen]).to(device), to_float(train.pixels[:512]).to(device)
    conditional = trained.shape.classes is not None
    assert test.labels is not None
    assert train.labels is not None
    labels = test.labels[chosen].to(device)
    pilot_cond = {"label": train.labels[:512].to(device)} if conditional else None
    pilots = list[Pilot]()

    def measure(evaluations: int | None, seed: int, count: int = images) -> Tensor:
        own, cond = Progress(), {"label": labels[:count]} if conditional else None
        found = estimate_bound(
            trained.denoiser,
            x0[:count],
            pilot,
            evaluations=evaluations,
            cond=cond,
            pilot_cond=pilot_cond,
            seed=seed,
            draws=MOST_DRAWS,
            progress=own,
        )
        pilots.extend([own.pilot] if own.pilot else [])
        return found.per_image.bits_per_dim

    summed = min(summed, images)
    full = torch.stack([measure(None, 1000 + k, summed) for k in range(2)])
    of_full, mean = within(full), full.mean()
    drawn = {evaluations: torch.stack([measure(evaluations, k) for k in range(trials)]) for evaluations in CALLS}
    data = float(drawn[16].mean(0).var()) - within(drawn[16]) / trials
    steps = trained.denoiser.schedule.steps or 1000
    print(f"T = {steps}, {images} images, own spread {math.sqrt(data):.4f}; {float(mean):.4f} bits/dim on {summed}")
    opposite = sum(own.opposite for own in pilots)
    print(f"{len(pilots)} pilots of {pilots[0].evaluations:,} calls, of which {opposite} found opposite noises better")
    print("evaluations  fewer by  noise / full sum's  inflation of the data set's error  mean's offset in its own error")
    print(f"{steps:11d}  {1:7.0f}x  {1:16.2f}  {100 * (math.sqrt(1 + of_full / data) - 1):31.2f} %")
    for evaluations, own in drawn.items():
        noise = within(own)
        offset = own[:, :summed].mean() - mean
        error = math.sqrt(within(own[:, :summed]) / trials / summed + of_full / 2 / summed)
        inflation = 100 * (math.sqrt(1 + noise / data) - 1)
        ratio = math.sqrt(noise / of_full)
        print(
            f"{evaluations:11d}  {steps / evaluations:7.0f}x  {ratio:16.2f}  {inflation:31.2f} %  {float(offset) / error:+.2f}"
        )


if __name__ == "__main__":
    guarded(main)
