"""Whether a penalty that fell did so alone: what was trained on, beside what was not seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xhat.studies.outcome import Outcome
from xhat.studies.study import Study

HIGHER = ("recall",)
"""Quantities of which more is better; of penalties and FID it is less."""
BETTER, WORSE, SAME = "better", "worse", "not to be told"


@dataclass(frozen=True)
class Row:
    """One change beside the first.

    Attributes:
        change: its name.
        trained: what became of the penalties that it names.
        unseen: what became of the others, of FID and recall.
        verdict: in a word.
    """

    change: str
    trained: str
    unseen: str
    verdict: str


def verdicts(study: Study, outcomes: Sequence[Outcome]) -> list[Row]:
    """One row for each change that names one of the study's penalties, in the order of the study.

    A penalty that a change is trained on is one whose expression stands in one of its values. "hacked": that one is better and
    one that it does not see is worse. "better on all": all are better. Else the row says what is better, or that nothing is.
    """
    base, found = outcomes[0], []
    for outcome in outcomes[1:]:
        said = " ".join(str(value) for value in {**study.common, **study.changes[outcome.name]}.values())
        trained = [name for name, text in study.penalties.items() if text in said]
        if not trained or not outcome.values:
            continue
        others = [name for name in (*study.penalties, "fid", "recall") if name not in trained]
        of_trained = {name: _became(outcome, base, name) for name in trained}
        of_others = {name: became for name in others if (became := _became(outcome, base, name))}
        verdict = _verdict([*of_trained.values()], of_others, set(study.penalties))
        found.append(Row(outcome.name, _said(of_trained), _said(of_others), verdict))
    return found


def _became(outcome: Outcome, base: Outcome, quantity: str) -> str:
    """Better, worse, or not to be told from the base's; empty where one of them has none."""
    gain = (base.mean(quantity) - outcome.mean(quantity)) * (-1 if quantity in HIGHER else 1)
    if not math.isfinite(gain):
        return ""
    seeds = sum(math.isfinite(value) for value in outcome.values.get(quantity, []))
    if seeds < 2 or outcome.ties(base, quantity):
        return SAME
    return BETTER if gain > 0 else WORSE


def _verdict(trained: Sequence[str], others: dict[str, str], penalties: set[str]) -> str:
    if BETTER not in trained:
        return "no gain"
    if worse := [name for name, became in others.items() if became == WORSE]:
        rewards = [name for name in worse if name in penalties]
        return "hacked" if rewards else f"paid for in {' and '.join(name.upper() if name == 'fid' else name for name in worse)}"
    return "better on all" if all(became == BETTER for became in others.values()) else "better"


def _said(became: dict[str, str]) -> str:
    return ", ".join(f"{name} {word}" for name, word in became.items() if word)
