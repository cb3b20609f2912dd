"""xhat export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from xhat.commands.parsing import add_use, new_parser
from xhat.errors import UsageError

DESCRIPTION = """Write a trained run as other libraries read it.

--to diffusers DIR: what was trained of a pipeline, an adapter as pipeline.load_lora_weights(DIR) reads it, or the whole
pipeline; of a run with a UNet2DModel a pipeline with a scheduler of its table, prediction type and variance. A model card,
README.md, says what it was trained on, on which objective, and what was measured. The weights are the averaged ones. What
diffusers has no word for, a network of ours or a continuous schedule, is refused by name."""


def run(argv: Sequence[str]) -> int:
    """Write a trained run as diffusers reads it."""
    parser = new_parser("export", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    parser.add_argument("--to", type=Literal["diffusers"], required=True, help="the library: diffusers")
    parser.add_argument("out", metavar="DIR", help="a new folder")
    options = parser.read(argv)
    return _export(options.run, Path(options.out))


def _export(source: str, out: Path) -> int:
    from xhat.config.build import build_objective
    from xhat.files.atomic import write_bytes
    from xhat.pipelines.card import NAME, card
    from xhat.pipelines.export import write_diffusers
    from xhat.pipelines.network import folder_of
    from xhat.runs.load import load
    from xhat.runs.metrics import read_metrics

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already: name a new folder, or move it away")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    trained = load(source)
    config, folder = trained.config, Path(source)
    what = write_diffusers(trained.denoiser, out)
    told = {
        "data": Path(config.data).name,
        "samples": trained.shape.said(),
        "steps": f"{trained.step:,}, of {config.batch_size} samples",
        "learning rate": f"{config.optimizer.lr:g}",
        **({"adapter": f"rank {config.lora}"} if config.lora else {}),
    }
    rows = read_metrics(folder) if folder.is_dir() else []
    text = card(what, folder_of(config.network), build_objective(config, trained.denoiser).described(), told, rows)
    write_bytes(out / NAME, text.encode())
    print(f"{what} in {out}, with its model card")
    return 0
