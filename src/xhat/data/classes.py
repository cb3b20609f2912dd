"""Sub-folders as classes."""

from collections.abc import Sequence
from pathlib import Path

from xhat.data.wording import some


def classes_of(root: Path, paths: Sequence[Path]) -> tuple[list[int], tuple[str, ...]] | str:
    """Class number of each file, its sub-folder's, and the names of these; or why there are none."""
    below = [path.relative_to(root).parts for path in paths]
    loose = ["/".join(parts) for parts in below if len(parts) == 1]
    names = sorted({parts[0] for parts in below})
    if loose and len(loose) < len(below):
        return f"{len(loose):,} of {len(below):,} files outside the sub-folders: {some(loose)}"
    if loose or len(names) < 2:
        return "two or more sub-folders, one per class, would give labels"
    number = {name: k for k, name in enumerate(names)}
    return [number[parts[0]] for parts in below], tuple(name.encode(errors="replace").decode() for name in names)
