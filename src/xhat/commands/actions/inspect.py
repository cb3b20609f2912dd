"""What xhat inspect does."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.bar import Bar
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from xhat.analysis.profile import at_levels, levels, profile
from xhat.analysis.remarks import named_remarks
from xhat.commands.inspect import Asked
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import console, notes, print_json
from xhat.config.build import build_denoiser, build_objective
from xhat.config.changes import changed_values
from xhat.config.config import Config
from xhat.config.data import Data, build_data, in_memory
from xhat.data.images import to_float
from xhat.data.source import Feed
from xhat.data.summary import notices
from xhat.errors import UsageError
from xhat.losses.denoising import Denoising
from xhat.losses.image import ImageLoss
from xhat.objective.describe import described
from xhat.objective.objective import Objective
from xhat.pipelines.network import home_of
from xhat.rng import Shard

LEGEND = """samples    share drawn per unit logsnr
x0, v, ... weight on the squared error there; all are the same loss
bound      effective weighting: relative to the variational bound, largest = 1
gradient   of one drawn image in the output, per pixel, where that is 0 (untrained)
"""

LEVELS, BAR, LOOKED_AT = 17, 8, 1000
SHOWN_SPACES = ("x0", "noise", "v")
MOST_COLUMNS = 4
SMALLEST = 1e-3
"""Of the largest: below, the picture shows 0, and with a 0 its axis is linear; weights fall by any number of decades."""


def act(asked: Asked) -> int:
    """Show what a recipe optimizes, before training, or what differs between two.

    Args:
        asked: what the arguments of `xhat inspect` stand for.

    Returns:
        0.

    Raises:
        XhatError: one line; no picture is written.
    """
    results = []
    for recipe, config in asked.configs:
        try:
            results.append(_inspect(recipe, config))
        except ValueError as error:
            raise UsageError(f"{recipe}: {error}" if len(asked.configs) > 1 else str(error)) from None
    _save_picture(results, asked.picture, force=asked.force)
    compared = _compare([config for _, config in asked.configs], results) if len(results) == 2 else None
    if asked.json:
        print_json({"configs": results, **compared} if compared else results[0])
        return 0
    if compared:
        _show_both(results, compared)
    else:
        _show(results[0])
    console().print(f"picture: {asked.picture}", soft_wrap=True)
    return 0


def _inspect(recipe: str, config: Config) -> dict[str, Any]:
    data = build_data(config, share=0.0)
    shape = data.shape
    denoiser = build_denoiser(config, shape)
    objective, home = build_objective(config, denoiser), home_of(denoiser.net)
    known = in_memory(data.train, shape, config.data, LOOKED_AT) if data.images is None else data.images.train
    pixels = known.pixels[:LOOKED_AT]
    second_moment = 1.0 if pixels.is_meta else float(to_float(pixels).square().mean())  # prompts alone: there are none
    found = profile(objective, levels(denoiser.schedule), second_moment)
    numbers = {key: value for key, value in asdict(found).items() if key not in ("effective", "density")}
    losses = [part for term in objective.terms.values() for part in term.loss.parts()]
    result = {
        "recipe": recipe,
        "network": config.network,
        "parameters": sum(p.numel() for p in denoiser.net.parameters()),
        "schedule": f"of its {type(home.pipeline.scheduler).__name__}" if home else config.schedule,
        "target": denoiser.target.name if home else config.target,
        "terms": {name: {"loss": term.loss, "weight": term.weight, "when": term.when} for name, term in config.terms.items()},
        "times": config.times,
        "variance": described(denoiser.variance) if home else config.variance,
        **numbers,
        "loss_spaces": list(dict.fromkeys(loss.space.name for loss in losses if isinstance(loss, Denoising))),
        "effective_weighting": _largest_one(found.effective),
        "sample_density": found.density,
        "second_moment": second_moment,
        "remarks": named_remarks(found, objective),
        "costs": _costs(config, objective, data),
    }
    notes(notices(known) if data.images is not None else [])
    return result


def _costs(config: Config, objective: Objective, data: Data) -> dict[str, dict[str, float]]:
    """Time and memory of a step, with each of the losses on the image; nothing if there is none."""
    from xhat.analysis.cost import term_costs

    if not any(isinstance(term.loss, ImageLoss) for term in objective.terms.values()):
        return {}
    rows = config.batch_size // config.accumulate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = Feed(data.train, data.shape, device).get(0, Shard(0, rows), rows)
    found = term_costs(objective.to(device), batch.x0, batch.cond, batch.extra)
    return {name: {"seconds": each.seconds, "megabytes": each.bytes / 1e6} for name, each in found.items()}


def _compare(configs: Sequence[Config], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What differs: config values, curves at common levels (null where one has none), remarks that only one has."""
    ends = [f(r["logsnr"]) for f in (max, min) for r in results]
    logsnr = torch.linspace(max(ends), min(ends), LEVELS, dtype=torch.float64).tolist()
    columns = ("effective_weighting", "sample_density", "gradient")
    first, second = (r["remarks"] for r in results)
    return {
        "differences": {key: list(pair) for key, pair in changed_values(*configs).items()},
        "logsnr": logsnr,
        **{column: [at_levels(logsnr, r["logsnr"], r[column]) for r in results] for column in columns},
        "only": [[v for k, v in first.items() if k not in second], [v for k, v in second.items() if k not in first]],
        "both": [name for name in first if name in second],
    }


def _largest_one(values: Sequence[float]) -> list[float]:
    top = max(values)
    return [v / top for v in values] if top > 0 else list(values)


def _save_picture(results: Sequence[dict[str, Any]], picture: Path, *, force: bool) -> None:
    from xhat.evaluation.pictures import save_curves

    logsnr = sorted({level for r in results for level in r["logsnr"]}, reverse=True)
    curves = [(f"{letter}  {r['recipe']}", r, "effective_weighting") for letter, r in zip("AB", results, strict=False)]
    if len(results) == 1:
        keys = ("effective_weighting", "sample_density", "gradient")
        curves = [(key.replace("_", " "), results[0], key) for key in keys]
    shown = {}
    for name, r, key in curves:
        values = at_levels(logsnr, r["logsnr"], _largest_one(r[key]))
        shown[name] = [0.0 if v < SMALLEST else v for v in values]
    ylabel = "largest = 1" if len(results) == 1 else "effective weighting, largest = 1"
    save_curves(picture, logsnr, shown, "logsnr  (noise on the left, data on the right)", ylabel, force=force)


def _show(result: dict[str, Any]) -> None:
    out = console()
    out.print(result["recipe"], style="bold")
    out.print(_choices(result))
    show_table(out, _levels_table(result), around=1)
    out.print(LEGEND)
    _show_remarks(out, "What this means", result["remarks"].values())
    _show_costs(out, result["costs"])


def _choices(result: dict[str, Any]) -> Table:
    low, high = result["middle_half"]
    table = new_table(text_column(), text_column())
    table.add_row("1 network output", result["target"])
    table.add_row("", f"{result['network']}, {result['parameters']:,} parameters")
    for name, term in result["terms"].items():
        table.add_row("2, 3 space, weighting", f"{name}: {term['weight']} · {term['loss']}, {term['when']}")
    table.add_row("4 time density", f"{result['times']}  on the schedule {result['schedule']}")
    table.add_row("", f"half of the samples between logsnr {low:.1f} and {high:.1f}")
    table.add_row("5 reverse variance", result["variance"])
    return table


def _levels_table(result: dict[str, Any]) -> Table:
    spaces = list(dict.fromkeys([result["output"], *result["loss_spaces"], *SHOWN_SPACES]))[:MOST_COLUMNS]
    spaces = spaces if result["counted"] else []
    used = {"output": [result["output"]], "loss": result["loss_spaces"]}
    headers = ("\n".join([*(u for u in used if name in used[u]), *name.split("_")]) for name in spaces)
    table = new_table(*map(number_column, ("logsnr", "t", "samples", *headers, "bound", "", "gradient")), gap=1)
    columns = [result["sample_density"], *(result["weights"][name] for name in spaces), result["effective_weighting"]]
    for i in range(0, len(result["logsnr"]), max(1, (len(result["logsnr"]) - 1) // (LEVELS - 1))):
        level, numbers = (f"{result['logsnr'][i]:.2f}", f"{result['t'][i]:.4f}"), (_number(column[i]) for column in columns)
        table.add_row(*level, *numbers, _bar(result["effective_weighting"][i]), _number(result["gradient"][i]))
    return table


def _show_both(results: Sequence[dict[str, Any]], compared: dict[str, Any]) -> None:
    out = console()
    names = [r["recipe"] for r in results]
    headers = ("what differs", *(f"{letter}  {name}" for letter, name in zip("AB", names, strict=True)))
    values = new_table(*map(text_column, headers))
    for key, pair in compared["differences"].items():
        values.add_row(key, *(_said(v) for v in pair))
    for label, key in (("bound of noised data", "monotone"), ("maximum likelihood", "constant")):
        values.add_row(label, *("yes" if r[key] else "no" for r in results))
    values.add_row("half of the samples", *("logsnr {:.1f} to {:.1f}".format(*r["middle_half"]) for r in results))
    out.print(values)
    bounds = [header for letter in "AB" for header in (f"bound\n{letter}", "")]
    headers = ("logsnr", *bounds, *(f"{label}\n{letter}" for label in ("samples", "gradient") for letter in "AB"))
    table = new_table(*map(number_column, headers), gap=1)
    for i, logsnr in enumerate(compared["logsnr"]):
        weights = [cell for w in compared["effective_weighting"] for cell in (_number(w[i]), _bar(w[i]))]
        rest = [_number(values[i]) for key in ("sample_density", "gradient") for values in compared[key]]
        table.add_row(f"{logsnr:.2f}", *weights, *rest)
    show_table(out, table, around=1)
    for name, only in zip(names, compared["only"], strict=True):
        _show_remarks(out, f"Only {name}", only)
    if compared["both"]:
        said = ", ".join(name.replace("_", " ") for name in compared["both"])
        out.print(f"In both, perhaps in other numbers (see each alone): {said}\n")
    for result in results:
        _show_costs(out, result["costs"])


def _show_remarks(out: Console, heading: str, remarks: Iterable[str]) -> None:
    table = new_table(text_column(), text_column(), gap=1)
    for remark in remarks:
        table.add_row("·", remark)
    if table.row_count:
        out.print(heading, style="bold")
        out.print(Padding(table, (0, 0, 1, 0)))


def _show_costs(out: Console, found: dict[str, dict[str, float]]) -> None:
    if not found:
        return
    costs = new_table(text_column("one training step"), *map(number_column, ("ms", "", "MB of\ntensors", "")))
    first = next(iter(found.values()))
    for name, each in found.items():
        ratios = [f"x {each[k] / first[k]:.2f}" if each is not first else "" for k in ("seconds", "megabytes")]
        label = name if each is first else f"with {name}"
        costs.add_row(label, f"{1000 * each['seconds']:.0f}", ratios[0], f"{each['megabytes']:.0f}", ratios[1])
    show_table(out, costs)


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def _bar(share: float) -> Bar:
    return Bar(1, 0, share if math.isfinite(share) else 0, width=BAR)


def _said(value: Any) -> str:
    return "–" if value is None or value == "absent" else str(value)
