"""Training steps on a GPU that is not there; in a process of its own, because PyTorch then has a device more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import xhat
from fake_gpu import GPU, WaitsError, fake_gpu, move
from xhat.config.options import OptimizerConfig, Options
from xhat.data import WithNull, from_tensors
from xhat.data.on_device import on_device
from xhat.training import agreement
from xhat.training.ema import PowerAverage
from xhat.training.loop import Loop
from xhat.training.optimizers import build_optimizers
from xhat.training.setup import set_up
from xhat.training.stop import Stop

STEPS = 3
CHAIN = xhat.FullChain(xhat.DDIM(), 2, xhat.Last(1))
TERMS = {
    "denoise": xhat.Term(xhat.Denoising(xhat.X0, weighting=xhat.weightings.min_snr(5))),
    "smooth": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=0.1),
    "chain": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation, CHAIN), weight=0.1),
    "held": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=xhat.multipliers.DualAscent(0.1)),
    "shared": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=xhat.multipliers.GradientRatio(0.1, every=1)),
    "free": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=xhat.multipliers.ConflictFree(0.1)),
    "rolled": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation, xhat.Rollout(xhat.DDIM(), 2, xhat.Last(1))), weight=0.1),
}


def objective(terms: dict[str, xhat.Term], **how: object) -> xhat.Objective:
    torch.manual_seed(0)
    network = xhat.UNet(channels=1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16, classes=3)
    return xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), terms, **how)


def steps(made: xhat.Objective, *, near: bool = False) -> int:
    """Steps of a training, none of which may wait; operators of the last.

    Args:
        made: what is trained.
        near: whether its data are on the GPU.
    """
    options = Options(batch_size=4, max_steps=10, ema=0.1, compile="off", precision="float32")
    data = WithNull(
        from_tensors(torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), {"label": torch.arange(16) % 3}), {"label": 3}
    )
    setup = set_up(made, data, options)
    stop = Stop()
    loop = Loop(setup, stop, 0.0)
    loop.agreement.lags = True
    with fake_gpu() as gpu:
        move(made, gpu)
        state = setup.state
        state.optimizers = build_optimizers(made, OptimizerConfig(muon_lr=0.02))
        state.average = PowerAverage(made.denoiser, 0.1)
        setup.feed.device = GPU
        if near:
            setup.feed.source = on_device(data, GPU, 2**30)
            assert setup.feed.source is not data
        for _ in range(STEPS):
            gpu.operators.clear()
            gpu.watching = True
            loop.gradients()
            loop.update()
    stop.restore()
    return len(gpu.operators)


def main() -> None:
    agreement.on_the_way = lambda votes: (votes, None)
    agreement.read = lambda votes, arrived: agreement.Agreed(True, 0, 0.0)  # there are no values
    for name, term in TERMS.items():
        print(name, steps(objective({"denoise": TERMS["denoise"], name: term})))
    print("near", steps(objective({"denoise": TERMS["denoise"]}), near=True))
    print("perturbed", steps(objective({"denoise": TERMS["denoise"]}, input_perturbation=0.1)))

    def read(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1) * float(images.mean())

    def chosen(images: torch.Tensor) -> torch.Tensor:
        return images[images > 0].mean().expand(len(images))

    def fetched(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1).cpu().sum().to(images.device).expand(len(images))

    def sent(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1) * torch.tensor(2.0).to(images.device)

    for penalty in (read, chosen, fetched, sent):
        try:
            steps(objective({"denoise": TERMS["denoise"], "waits": xhat.Term(xhat.ImageLoss(penalty))}))
        except WaitsError as error:
            print(f"{penalty.__name__}: caught, {error}")
        else:
            raise AssertionError(f"{penalty.__name__}: nobody noticed")


main()
