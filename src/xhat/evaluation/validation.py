"""What a denoiser is worth, as an object: numbers, a table, a picture, JSON."""

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xhat.evaluation.denoising import DenoisingError
from xhat.evaluation.pictures import BLUE, GREY, new_figure, save_figure, tidy
from xhat.files.atomic import write_bytes
from xhat.files.values import for_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Validation:
    """What a denoiser is worth on some data, on a scale that knows neither its target, nor its weighting, nor its schedule.

    Attributes:
        levels: errors of x0 by noise level, and what they add to the bound in bits/dim.
        bound: the variational bound with all of its parts, bits/dim; None where `without` says why.
        bound_se: its standard error over samples.
        above_floor: what of `levels` lies above the least error that any denoiser can have on data like those that are known;
            None where `without` says why.
        samples: how many were measured.
        without: what could not be measured, and why.
    """

    levels: DenoisingError
    bound: float | None
    bound_se: float | None
    above_floor: DenoisingError | None
    samples: int
    without: dict[str, str] = field(default_factory=dict)

    @property
    def bits_per_dim(self) -> float:
        """Bits/dim within the noise levels measured: comparable between all models on the same data."""
        return self.levels.bits_per_dim

    @property
    def bits_per_dim_se(self) -> float:
        """Its standard error over samples."""
        return self.levels.bits_per_dim_se

    def numbers(self) -> dict[str, float]:
        """All of it by the names of metrics.jsonl, for a logger."""
        found = {"eval/bits_per_dim": self.bits_per_dim, "eval/bits_per_dim_se": self.bits_per_dim_se}
        pairs = zip(self.levels.logsnr, self.levels.x0_error, strict=True)
        found |= {f"eval/x0_error/logsnr={level:g}": error for level, error in pairs}
        if self.bound is not None and self.bound_se is not None:
            found |= {"eval/bound": self.bound, "eval/bound_se": self.bound_se}
        if self.above_floor is not None:
            found |= {"eval/above_floor": self.above_floor.bits_per_dim}
        return found

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(for_json(asdict(self)), allow_nan=False)

    def rows(self) -> list[tuple[str, ...]]:
        """The table: logsnr, error of x0, its standard error, bits/dim per unit logsnr; and where it is known what is above
        the floor.
        """
        columns = [
            [f"{x:g}" for x in self.levels.logsnr],
            [f"{x:.5f}" for x in self.levels.x0_error],
            [f"{x:.1g}" for x in self.levels.x0_error_se],
            [f"{x:.4f}" for x in self.levels.density],
        ]
        if self.above_floor is not None:
            columns.append([f"{x:.5f}" for x in self.above_floor.x0_error])
        return list(zip(*columns, strict=True))

    def lines(self) -> list[str]:
        """What stands above and below the table."""
        ends = f"logsnr {self.levels.logsnr[0]:g} to {self.levels.logsnr[-1]:g}"
        said = [f"{self.bits_per_dim:.4f} ± {self.bits_per_dim_se:.4f} bits/dim within {ends}, {self.samples:,} samples"]
        if self.bound is not None:
            said.append(f"{self.bound:.4f} ± {self.bound_se:.4f} bits/dim, the whole variational bound")
        if self.above_floor is not None:
            above = self.above_floor
            said.append(f"{above.bits_per_dim:.4f} ± {above.bits_per_dim_se:.4f} bits/dim above the floor")
        return [*said, *(f"no {what}: {why}" for what, why in self.without.items())]

    def header(self) -> tuple[str, ...]:
        """Of the table."""
        known = ("above floor",) if self.above_floor is not None else ()
        return ("logsnr", "error of x0", "±", "bits/dim per unit", *known)

    def __repr__(self) -> str:
        table = [self.header(), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        body = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*self.lines(), *body])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header())
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in self.rows())
        return "".join(f"<p>{escape(line)}</p>" for line in self.lines()) + f"<table><tr>{head}</tr>{body}</table>"

    def plot(self) -> "Figure":
        """A matplotlib figure: the error of x0 and the bits/dim at each noise level, ± one standard error."""
        figure: Figure = new_figure(9, 3.2)
        error, bits = figure.subplots(1, 2)
        error.errorbar(self.levels.logsnr, self.levels.x0_error, self.levels.x0_error_se, color=BLUE, linewidth=1.8)
        error.set_title("mean (x0 - x0_hat)²", loc="left", fontsize=10)
        error.set_yscale("log")
        bits.plot(self.levels.logsnr, self.levels.density, color=BLUE, linewidth=1.8, label="model")
        if self.above_floor is not None:
            least = [d - a for d, a in zip(self.levels.density, self.above_floor.density, strict=True)]
            bits.plot(self.levels.logsnr, least, color=GREY, linewidth=1.4, label="floor")
            bits.legend(frameon=False)
        bits.set_title("bits/dim per unit logsnr", loc="left", fontsize=10)
        for axis in (error, bits):
            axis.set_xlabel("logsnr (noise on the left, data on the right)")
            tidy(axis)
        return figure

    def save(self, path: str | Path) -> None:
        """The picture as a PNG or the numbers as JSON, by the name of the file.

        Raises:
            ValueError: it is neither.
        """
        suffix = Path(path).suffix
        if suffix == ".json":
            write_bytes(Path(path), self.to_json().encode())
        elif suffix == ".png":
            save_figure(self.plot(), Path(path), force=True)
        else:
            raise ValueError(f"{path}: name a .png for the picture or a .json for the numbers")
