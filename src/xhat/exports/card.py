"""The model card of what is exported: what it was trained on, on which loss, and what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xhat.exports.diffusers import LORA

NAME = "README.md"


def card(
    what: str, base: Path | None, objective: Mapping[str, str], trained: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Markdown with the head that model hubs read.

    Args:
        what: was written: a LoRA, or a pipeline.
        base: folder of the pipeline that it was trained from.
        objective: in words, as `Objective.described` has it.
        trained: the data, steps and so on, in words.
        rows: of the run's metrics, the oldest first.
    """
    head = {
        "library_name": "diffusers",
        "tags": ["xhat", *(["lora"] if what == LORA else [])],
        **({"base_model": base.name} if base is not None else {}),
    }
    start = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{start}---\n", f"# {what[0].upper()}{what[1:]}, trained with xhat\n"]
    parts += [_table("What it was trained on", trained), _table("The objective", objective)]
    if measured := _measured(rows):
        parts.append(_table("Measured", measured))
    parts.append("## Use\n\n```python\n" + _use(what, base) + "```\n")
    return "\n".join(parts)


def _table(title: str, values: Mapping[str, str]) -> str:
    rows = "".join(f"| {key} | {_cell(value)} |\n" for key, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last value of each term, and of what was measured on held-out samples."""
    found: dict[str, str] = {}
    for row in rows:
        found |= {f"{name}, training": f"{value:.4g}" for name, value in row.get("terms", {}).items()}
        found |= {name: f"{value:.4g}" for name, value in row.items() if name.startswith("eval/") and isinstance(value, float)}
    return found


def _use(what: str, base: Path | None) -> str:
    if what == LORA and base is not None:
        return (
            "from diffusers import DiffusionPipeline\n\n"
            f'pipeline = DiffusionPipeline.from_pretrained("{base.name}")\n'
            'pipeline.load_lora_weights("this folder")\n'
        )
    return 'from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained("this folder")\n'
