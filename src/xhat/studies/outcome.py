"""What the seeds of one change gave, and which differences between changes are more than chance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xhat.bound.student import student


@dataclass(frozen=True)
class Outcome:
    """One change over all seeds.

    Attributes:
        name: of the change.
        values: of each seed in the order of the study's, by quantity; NaN where a seed has none.
        failed: seed -> the last line that its training or its measurement said.
    """

    name: str
    values: dict[str, list[float]]
    failed: dict[int, str]

    @classmethod
    def of(
        cls, name: str, found: Mapping[int, Mapping[str, float]], failed: Mapping[int, str], seeds: Sequence[int]
    ) -> "Outcome":
        """From what was found for each seed."""
        quantities = dict.fromkeys(q for values in found.values() for q in values)
        return cls(name, {q: [found.get(s, {}).get(q, math.nan) for s in seeds] for q in quantities}, dict(failed))

    def mean(self, quantity: str) -> float:
        """Over seeds; NaN if none has it."""
        known = self._known(quantity)
        return statistics.fmean(known) if known else math.nan

    def sd(self, quantity: str) -> float:
        """Standard deviation between seeds; NaN below two."""
        known = self._known(quantity)
        return statistics.stdev(known) if len(known) > 1 else math.nan

    def se(self, quantity: str) -> float:
        """Standard error of the mean: that of the images measured, which all seeds share, and that between seeds."""
        of_images, between = self.mean(f"{quantity}_se"), self.sd(quantity) / math.sqrt(max(1, len(self._known(quantity))))
        known = [e for e in (of_images, between) if math.isfinite(e)]
        return math.hypot(*known) if known else math.nan

    def ties(self, best: "Outcome", quantity: str) -> bool:
        """Whether the difference to the best may be chance.

        With two common seeds or more: zero lies within Student's 95 % interval of the mean difference, seed by seed, which have
        the same weights, data and noise; of positive quantities it is the logarithms that differ, because what is ten times as
        large also spreads ten times as far. With fewer: within two standard errors. Those of a single seed are of the images
        alone, and say nothing of how far seeds differ; a quantity without a standard error has no ties then.
        """
        if self is best:
            return False
        both = zip(self.values.get(quantity, []), best.values.get(quantity, []), strict=False)
        pairs = [(a, b) for a, b in both if math.isfinite(a - b)]
        positive = all(a > 0 and b > 0 for a, b in pairs)
        differences = [math.log(a / b) if positive else a - b for a, b in pairs]
        if len(differences) < 2:
            far = math.hypot(self.se(quantity), best.se(quantity))
            return abs(self.mean(quantity) - best.mean(quantity)) <= 2 * far  # NaN compares as False
        freedom = len(differences) - 1
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return abs(statistics.fmean(differences)) <= student(freedom) * error

    def _known(self, quantity: str) -> list[float]:
        return [v for v in self.values.get(quantity, []) if math.isfinite(v)]


def best(outcomes: Sequence[Outcome], quantity: str) -> Outcome | None:
    """The one with the lowest mean; None if fewer than two have any."""
    known = [o for o in outcomes if math.isfinite(o.mean(quantity))]
    return min(known, key=lambda o: o.mean(quantity)) if len(known) > 1 else None
