"""What xhat average does."""

from pathlib import Path
from typing import Any

from xhat.commands.terminal import note
from xhat.runs.averages import averaged

NEAR = 0.05
"""A profile that is farther than this from the one asked for is said to be."""


def act(options: Any) -> int:
    """Make an average of those that a run has kept."""
    file, step, count, miss = averaged(Path(options.run), options.width, options.step)
    if miss > NEAR:
        note(f"the profile is {miss:.0%} from that of width {options.width:g}: keep averages more often, --averages_every")
    file.write(Path(options.out))
    made = f"of {count} kept, {miss:.2%} from its profile"
    print(f"the average of width {options.width:g} after {step:,} steps in {options.out}: {made}")
    return 0
