"""The arguments of xhat gradients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.commands.parsing import add_force, add_use, new_parser
from xhat.config.parsing import recipe_path
from xhat.errors import UsageError
from xhat.files.ours import require_free
from xhat.runs.places import weights_of

DESCRIPTION = """Show how the terms of a run, or of a preset or config with untrained weights, pull at the network.

For each noise level: the norm of each term's gradient, and its cosine to the gradient of the base, the other terms whose
weights are numbers (below 0 they disagree). Along a whole chain of sampling steps: the norm of d penalty / d z, which shows
whether the recursion makes gradients explode or vanish; a run without a loss on the image shows total variation's."""


def read(argv: Sequence[str]) -> Any:
    """What to look at, and where the picture goes.

    Raises:
        UsageError: one line.
    """
    parser = new_parser("gradients", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN|RECIPE", help="a run folder, an ema.safetensors, a preset or a .yaml file")
    parser.add_argument("--n", type=int, default=64, help="images in the batch")
    parser.add_argument("--chain", type=int, default=20, metavar="STEPS", help="sampling steps of the chain")
    parser.add_argument("--seed", type=int, default=0, help="of the batch and its noise")
    parser.add_argument("--picture", type=str | None, default=None, metavar="FILE.png", help="where the picture goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_force(parser, "a picture that is there already")
    options = parser.read(argv)
    if options.n < 1 or options.chain < 1:
        raise UsageError("--n and --chain must be at least 1")
    source = Path(options.run)
    picture = Path(options.picture or (source / "gradients.png" if source.is_dir() else f"{source.stem}-gradients.png"))
    if not picture.parent.is_dir():
        raise UsageError(f"--picture {picture}: the folder {picture.parent} does not exist")
    require_free(picture, force=options.force, ours=True)
    options.picture = picture
    if is_run(options.run):
        weights_of(options.run)
    else:
        recipe_path(options.run)
    return options


def is_run(source: str) -> bool:
    """Whether what is named is trained, and no recipe."""
    return Path(source).is_dir() or source.endswith(".safetensors")
