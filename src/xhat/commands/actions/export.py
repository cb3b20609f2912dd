"""What xhat export does."""

from pathlib import Path
from typing import Any

import torch

from xhat.commands.actions.real_images import conditions_of, real_images
from xhat.commands.terminal import note
from xhat.config.build import build_objective, build_sampling
from xhat.exports.card import NAME, card
from xhat.exports.diffusers import write_diffusers
from xhat.exports.graph import Graph, import_onnxruntime, sampling_of
from xhat.files.atomic import write_bytes
from xhat.pipelines.network import folder_of, home_of
from xhat.runs.load import load
from xhat.runs.metrics import read_metrics


def act(options: Any) -> int:
    """Write a trained run as other libraries read it."""
    out = Path(options.out)
    return _to_diffusers(options.run, out) if options.to == "diffusers" else _to_graph(options.run, options.to, out)


def _to_diffusers(source: str, out: Path) -> int:
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
    home = home_of(trained.denoiser.net)
    if home is not None:
        sizes = home.sizes(1, home.pixels_of_latents(trained.shape.sample[1:]))
        return {**(home.without_prompt() if home.tells else {}), **sizes}
    told = {"label": torch.zeros(1, dtype=torch.long)} if trained.shape.classes is not None else {}
    if trained.shape.conditions:
        told |= conditions_of(trained, real_images(trained, None).distribution, 1) or {}
    return told
