"""A reward under a LoRA, four ways at equal compute, with and without a reference: how much is learned, and what it costs.

usage: python benchmarks/rewards.py FOLDER [--passes N] [--seeds N]

In FOLDER, once: an autoencoder of MNIST, a DiT on its latents that is told the digit, trained by xhat.fit, together a pipeline
of diffusers; and a judge, whose log-probability of the digit asked for is the reward. Then each way trains an adapter of rank 8
until the network has made the same number of passes, a call for one sample being one and its gradient two more. Who looks on
is another network, the digit reader that the package ships, on noise that nobody trained on.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from usage import Parser, count, guarded

import xhat
from xhat import DDIM, Decode, Denoising, FullChain, ImageLoss, Last, Objective, OneStep, ReFL, Term, ToReference
from xhat.data.idx import mnist
from xhat.data.images import to_float, to_uint8
from xhat.data.load import load
from xhat.diffusion.weightings import high_snr
from xhat.errors import RunError
from xhat.evaluation.fid import distance, features_of
from xhat.networks.digits import MNISTFeatures
from xhat.pipelines.pretrained import Pretrained
from xhat.sampling.differentiate import AllSteps

SIDE, PAD, BATCH, STEPS, RANK, RATE, KL = 32, 2, 32, 20, 8, 1e-3, 1e-6
GATE = 0.0
"""The logsnr above which the penalty of one step counts."""
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DRAWN, LOOKED_AT = 1000, 100
"""Samples that each adapter is measured on, and those of them whose way is compared with the reference's."""


class Judge(nn.Module):
    """The reward's network: small, and of another kind than the reader that looks on."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 16), (16, 32), (32, 64))
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.SiLU()) for a, b in sizes))
        self.head = nn.Linear(64 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits


def of_digits() -> tuple[Tensor, Tensor]:
    """Padded images (60000, 1, 32, 32) in [-1, 1], and their digits."""
    found = load("mnist")
    assert found.labels is not None
    return F.pad(to_float(found.pixels[:]), (PAD,) * 4, value=-1.0), found.labels


def learned(module: nn.Module, loss: Callable[[Tensor], Tensor], rows: int, steps: int, rate: float) -> None:
    """Train a part on batches of 128."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        value = loss(torch.randint(rows, (128,)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rates.step()


def judge(path: Path) -> Judge:
    """The reward's network, trained on half of the digits."""
    net = Judge()
    if path.is_file():
        net.load_state_dict(load_file(path))
    else:
        images, labels = of_digits()
        torch.manual_seed(2)
        learned(net, lambda i: F.cross_entropy(net(images[i]), labels[i]), 30_000, 1500, 2e-3)
        save_file(net.state_dict(), path)
    return net.requires_grad_(False).eval()


def autoencoder(folder: Path) -> Any:
    """Of digits, (1, 32, 32) to latents (4, 8, 8); trained, if it is not there."""
    if (folder / "vae").is_dir():
        return diffusers.AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False).eval()
    images, _ = of_digits()
    torch.manual_seed(0)
    vae: Any = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(8, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )

    def elbo(index: Tensor) -> Tensor:
        of = vae.encode(images[index]).latent_dist
        loss: Tensor = F.mse_loss(vae.decode(of.sample()).sample, images[index]) + KL * of.kl().mean()
        return loss

    learned(vae, elbo, len(images), 1000, 2e-3)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images[:5000].split(500)])
        print(f"autoencoder: error {F.mse_loss(vae.decode(latents[:500]).sample, images[:500]):.4f}", flush=True)
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    vae.save_pretrained(folder / "vae")
    return vae


def pipeline(folder: Path) -> Path:
    """The folder of the pipeline that is to be tuned; trained, if it is not there."""
    if (folder / "pipeline").is_dir():
        return folder / "pipeline"
    vae, (images, labels) = autoencoder(folder), of_digits()
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, patch_size=2, num_layers=6, num_attention_heads=4, attention_head_dim=32,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    made = xhat.pretrained(diffusers.DiTPipeline(net, vae, scheduler, id2label={str(i): name for i, name in enumerate(NAMES)}))
    latents = torch.cat([made.latents(part) for part in images.split(500)])
    data = xhat.data.from_tensors(latents, {"label": labels})
    objective = Objective(made.denoiser, {"denoise": Term(Denoising())})
    fitted = xhat.fit(objective, data, folder / "base", max_steps=4000, batch_size=128, optimizer={"lr": 1e-3}, compile="off")
    if not fitted.finished:
        raise RunError("stopped while the pipeline was trained: start again in a new folder")
    made.save(folder / "pipeline", fitted.denoiser)
    return folder / "pipeline"


@dataclass(frozen=True)
class Found:
    """What became of an adapter."""

    passes: int
    seconds: float
    reward: float  # by the judge that it was trained on
    held_out: float  # by the reader
    read: float  # share of samples that the reader takes for the digit asked for
    distance: float
    fid: float


class Passes:
    """Counts what the network is called for: one for each sample, two more where there may be a gradient.

    A step of a chain that is made again in the backward pass counts six, though it costs four: the ways that differentiate
    chains have rather less compute than the others, never more.
    """

    def __init__(self, net: nn.Module) -> None:
        self.count = 0
        net.register_forward_hook(self._called)

    def _called(self, net: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
        self.count += len(given[0]) * (3 if torch.is_grad_enabled() else 1)


WAYS = {"one step": 3.0, "ReFL": 3.0, "DRaFT-1": 3.0, "full chain": 3.0}
"""How the image comes about, and the weight of the reference beside it."""


def terms(way: str, near: float, judge: Judge) -> dict[str, Term]:
    """The reward in one of four ways, and the reference beside it."""

    def penalty(images: Tensor, draw: xhat.Draw) -> Tensor:
        assert draw.cond is not None
        return F.cross_entropy(judge(images), draw.cond["label"], reduction="none")

    images: dict[str, Any] = {
        "one step": OneStep(),
        "DRaFT-1": FullChain(DDIM(), STEPS, Last(1)),
        "ReFL": FullChain(DDIM(), STEPS, ReFL(STEPS // 2)),
        "full chain": FullChain(DDIM(), STEPS, AllSteps()),
    }
    gate = high_snr(GATE) if way == "one step" else None
    reward = ImageLoss(penalty, images[way], gate, decode=Decode(chunk=BATCH))
    along = None if way == "one step" else FullChain(DDIM(), STEPS)
    return {"reward": Term(reward)} | ({"near": Term(ToReference(along=along), near)} if near else {})


def batches(made: Pretrained, way: str, seed: int) -> Iterator[dict[str, Any]]:
    """What the objective is given at each step: latents and their digits, or digits alone."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = of_digits()
    while True:
        if way == "one step":
            index = torch.randint(len(images), (BATCH,), generator=generator)
            yield {"x0": made.latents(images[index]), "cond": {"label": labels[index]}}
        else:
            told = torch.randint(10, (BATCH,), generator=generator)
            yield {"shape": (BATCH, *made.latent_of((SIDE, SIDE))), "cond": {"label": told}}


def tuned(folder: Path, way: str, near: float, passes: Sequence[int], seed: int) -> Iterator[Found]:
    """What became of an adapter after so many passes, each."""
    made, own = xhat.pretrained(folder / "pipeline", lora=RANK), judge(folder / "judge.safetensors")
    objective = Objective(made.denoiser, terms(way, near, own), seed=seed)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=RATE)
    counted, start = Passes(made.denoiser.net), time.perf_counter()
    given = batches(made, way, seed)
    step, spent = 0, 0.0
    for budget in passes:
        made.denoiser.train()
        while counted.count < budget:
            optimizer.zero_grad()
            objective(**next(given), step=step)["loss"].backward()
            optimizer.step()
            step += 1
        spent, used = spent + time.perf_counter() - start, counted.count
        yield measured(made, own, used, spent)
        counted.count, start = used, time.perf_counter()


@torch.no_grad()
def measured(made: Pretrained, own: Judge, passes: int, seconds: float) -> Found:
    """What an adapter draws, by the judge, by the reader, and beside the model that it was."""
    net, labels = made.denoiser.eval(), torch.arange(DRAWN) % 10
    generator = torch.Generator().manual_seed(1)
    start = xhat.sampling.sample.prior(net, (DRAWN, *made.latent_of((SIDE, SIDE))), generator)
    times = xhat.uniform_times(net.schedule, STEPS)
    images = [
        made.decode(xhat.sample(net, DDIM(), z, times, cond={"label": label}))
        for z, label in zip(start.split(500), labels.split(500), strict=True)
    ]
    drawn = torch.cat(images).clamp(-1, 1)
    reader = MNISTFeatures.trained()
    features = features_of(reader, to_uint8(drawn[:, :, PAD:-PAD, PAD:-PAD]))
    said = reader.read(features)
    return Found(
        passes,
        seconds,
        float(-F.cross_entropy(own(drawn), labels)),
        float(said.gather(1, labels[:, None]).clamp(min=1e-12).log().mean()),
        float((said.argmax(1) == labels).double().mean()),
        distance_to_reference(made, labels[:LOOKED_AT]),
        distance(features, features_of(reader, mnist("test").pixels), "mnist").fid,
    )


def distance_to_reference(made: Pretrained, labels: Tensor) -> float:
    """Of the predicted noise, along the way of samples of these digits, at ten random steps of it."""
    if not getattr(made.model, "peft_config", None):
        return 0.0
    near = Objective(made.denoiser, {"near": Term(ToReference(along=FullChain(DDIM(), STEPS)))}, seed=9)
    shape = (len(labels), *made.latent_of((SIDE, SIDE)))
    return statistics.fmean(float(near(shape=shape, cond={"label": labels}, step=k)["near"]) for k in range(10))


def main() -> None:
    """Train what is not there, then the table."""
    parser = Parser(description="rewards under a LoRA")
    parser.add_argument("folder", type=Path, help="where the pipeline and the judge are, or will be")
    parser.add_argument("--passes", type=count, default=160_000, help="of the network, for each adapter")
    parser.add_argument("--seeds", type=count, default=2)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(exist_ok=True, parents=True)
    own = judge(folder / "judge.safetensors")
    made = xhat.pretrained(pipeline(folder))
    console = Console(highlight=False)
    console.print(
        f"{DRAWN} samples of {STEPS} DDIM steps; rank {RANK}, AdamW at {RATE:g}, batches of {BATCH}; {options.seeds} seeds"
    )
    heads = ("way", "reference", "passes", "s", "reward", "held-out reward", "read as asked", "distance", "FID")
    table = Table(*heads, box=None, pad_edge=False)
    table.add_row("none", "", "0", "0", *cells([measured(made, own, 0, 0.0)]))
    budgets = (options.passes // 4, options.passes)
    for way, weights in WAYS.items():
        for near in (0.0, weights):
            runs = [list(tuned(folder, way, near, budgets, seed)) for seed in range(options.seeds)]
            for found in zip(*runs, strict=True):
                passes, seconds = (statistics.fmean(getattr(f, name) for f in found) for name in ("passes", "seconds"))
                said = f"{near:g}" if near else "none"
                table.add_row(way, said, f"{passes:,.0f}", f"{seconds:.0f}", *cells(found))
                print(way, near, found, flush=True, file=sys.stderr)
    console.print(table)
    print("\nreward: mean log-probability of the digit asked for, by the judge that is trained on; held-out: by the reader")
    print("distance: mean squared difference of the noise predicted with the adapter and without, on the way to samples")
    print("±: half of what the seeds lie apart")


def cells(found: Sequence[Found]) -> list[str]:
    """Reward and the rest, each a mean and what seeds differ by."""
    places = (3, 3, 3, 4, 1)
    columns = list(zip(*(astuple(f)[2:] for f in found), strict=True))
    return [spread(values, digits) for values, digits in zip(columns, places, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """mean ± half of what they lie apart."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


if __name__ == "__main__":
    guarded(main)
