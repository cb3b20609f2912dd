"""A picture of fields beside their residuals: the first of each file, as solve.py and `xhat sample` write them.

python picture.py OUT.png "NAME=FILE.npy"...
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from parts import residual

TITLES, COLOURS = ("log permeability", "pressure", "|residual|"), ("viridis", "magma", "Greys")
WORST = 60.0
"""Of the colours of residuals."""


def main(out: str, named: list[str]) -> None:
    figure, axes = plt.subplots(len(named), 3, figsize=(6.2, 2.05 * len(named)), layout="constrained", squeeze=False)
    for line, (name, _, file) in zip(axes, (entry.partition("=") for entry in named), strict=True):
        fields = torch.from_numpy(np.load(file)[:1]).double()
        pictures = (*fields[0], residual(fields)[0].abs())
        for axis, picture, colours in zip(line, pictures, COLOURS, strict=True):
            axis.imshow(picture.numpy(), cmap=colours, **({"vmin": 0, "vmax": WORST} if picture is pictures[2] else {}))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
        line[2].set_xlabel(f"mean {float(pictures[2].mean()):.2g}", fontsize=8)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
