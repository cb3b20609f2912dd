"""xhat export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from xhat.commands.parsing import add_use, new_parser
from xhat.commands.terminal import note
from xhat.errors import UsageError

DESCRIPTION = """Write a trained run as other libraries read it.

--to diffusers DIR: what was trained of a pipeline, an adapter as pipeline.load_lora_weights(DIR) reads it, or the whole
pipeline; of a run with a UNet2DModel a pipeline with a scheduler of its table, prediction type and variance. A model card,
README.md, says what it was trained on, on which objective, and what was measured. What diffusers has no word for, a network of
ours or a continuous schedule, is refused by name.

--to onnx FILE.onnx, --to torch FILE.pt2: any network, as one graph from (z, t, conditions) to x0 and noise; ONNX Runtime runs
it, or torch.export.load(FILE).module(). With it goes, as JSON, what a sampler needs: the run's times and alpha and sigma at
each. Of more than 1.5 GiB the weights are a second file, FILE.onnx.data.

The weights are the averaged ones."""

ENDS = {"onnx": ".onnx", "torch": ".pt2"}


def run(argv: Sequence[str]) -> int:
    """Write a trained run as other libraries read it."""
    parser = new_parser("export", DESCRIPTION)
    add_use(parser)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ema.safetensors")
    parser.add_argument("--to", type=Literal["diffusers", "onnx", "torch"], required=True, help="diffusers, onnx or torch")
    parser.add_argument("out", metavar="OUT", help="a new folder, or a new file")
    options = parser.read(argv)
    out = Path(options.out)
    if out.exists() and not (options.to == "diffusers" and out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"{out} exists already: name a new {'folder' if options.to == 'diffusers' else 'file'}, or move it away"
        )
    if options.to == "onnx" and (beside := out.with_name(f"{out.name}.data")).exists():
        raise UsageError(f"{beside} exists already: name a new file, or move it away")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    if options.to == "diffusers":
        return _to_diffusers(options.run, out)
    if out.suffix != ENDS[options.to]:
        raise UsageError(f"{out}: the file must end in {ENDS[options.to]}")
    return _to_graph(options.run, options.to, out)


def _to_diffusers(source: str, out: Path) -> int:
    from xhat.config.build import build_objective
    from xhat.exports.card import NAME, card
    from xhat.exports.diffusers import write_diffusers
    from xhat.files.atomic import write_bytes
    from xhat.pipelines.network import folder_of
    from xhat.runs.load import load
    from xhat.runs.metrics import read_metrics

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


def _to_graph(source: str, to: str, out: Path) -> int:
    from xhat.config.build import build_sampling
    from xhat.exports.graph import Graph, import_onnxruntime, sampling_of
    from xhat.runs.load import load

    if to == "onnx":
        import_onnxruntime()
    trained = load(source)
    how, denoiser = trained.config.sampling, trained.denoiser
    about = {
        "trained": {"steps": trained.step, "sample": trained.shape.sample, "classes": trained.shape.class_names},
        "sampling": {"sampler": how.sampler, "guidance": how.guidance},
        **sampling_of(denoiser.schedule, build_sampling(how, denoiser.schedule).times, denoiser.null),
    }
    graph, files = Graph.of(denoiser, trained.shape.sample, _told(trained)), [out]
    if to == "onnx":
        files = graph.write_onnx(about, out)
    else:
        graph.write_torch(about, out)
    if denoiser.decode is not None:
        note("the graph takes and gives latents: images are made of them by the pipeline's own autoencoder")
    if denoiser.variance.outputs > 1:
        note("the graph gives x0 and noise, not the reverse variance that the network has learned: draw by DDIM, not by DDPM")
    print(f"a graph in {' and '.join(map(str, files))}, with the {len(about['t']) - 1} steps that the run samples in")
    return 0


def _told(trained: Any) -> dict[str, Any]:
    """What the network is told of one sample."""
    import torch

    from xhat.commands.real_images import conditions_of, real_images
    from xhat.pipelines.network import home_of

    home = home_of(trained.denoiser.net)
    if home is not None:
        sizes = home.sizes(1, home.pixels_of_latents(trained.shape.sample[1:]))
        return {**(home.without_prompt() if home.tells else {}), **sizes}
    told = {"label": torch.zeros(1, dtype=torch.long)} if trained.shape.classes is not None else {}
    if trained.shape.conditions:
        told |= conditions_of(trained, real_images(trained, None).distribution, 1) or {}
    return told
