"""The same objective in a plain loop, in Lightning, and under Accelerate with two micro-batches on one and on two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import xhat

STEPS, BATCH = 4, 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, z, t):
        return self.body(torch.cat([z, t[:, None]], 1))


def objective():
    torch.manual_seed(0)
    terms = {
        "denoise": xhat.Term(xhat.Denoising(xhat.V, where=xhat.masked_mean("mask"))),
        "small": xhat.Term(xhat.ImageLoss(lambda x: x.square().mean(1)), weight=0.1),
    }
    return xhat.Objective(xhat.Denoiser(Net(), xhat.Cosine(), xhat.V), terms)


def batches():
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(BATCH, 3, generator=generator), torch.rand(BATCH, 3, generator=generator)) for _ in range(STEPS)]


def plain():
    """Losses and weights of the loop that everybody writes."""
    own = objective()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    losses = []
    for x0, mask in batches():
        loss = own(x0, extra={"mask": mask})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [p.detach().clone() for p in own.parameters()]


def test_lightning():
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.objective, self.losses = objective(), []

        def training_step(self, batch, index):
            x0, mask = batch
            losses = self.objective(x0, extra={"mask": mask})
            self.log_dict(losses)
            self.losses.append(float(losses["loss"].detach()))
            return losses["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    loader = torch.utils.data.DataLoader(batches(), batch_size=None, shuffle=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet).fit(module, loader)
    losses, weights = plain()
    torch.testing.assert_close(torch.tensor(module.losses), torch.tensor(losses))
    for own, other in zip(module.objective.parameters(), weights, strict=True):
        torch.testing.assert_close(own.detach(), other)


ACCELERATED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, xhat
from accelerate import Accelerator
from training.test_other_loops import BATCH, batches, objective

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
own = objective()
optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
prepared, optimizer = accelerator.prepare(own, optimizer)
rank, world = accelerator.process_index, accelerator.num_processes
rows = BATCH // 2 // world
losses = []
for step, (x0, mask) in enumerate(batches()):
    total = 0.0
    for part in range(2):
        first = (part * world + rank) * rows
        mine = slice(first, first + rows)
        with accelerator.accumulate(prepared):
            shard = xhat.Shard(first, BATCH)  # which of the step's samples these are
            loss = prepared(x0[mine], step=step, extra={"mask": mask[mine]}, shard=shard)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        total += float(accelerator.reduce(loss.detach(), "mean")) / 2
    losses.append(total)
if accelerator.is_main_process:
    print(json.dumps({"losses": losses, "weights": [p.detach().flatten().tolist() for p in own.parameters()]}))
accelerator.wait_for_everyone()
del prepared  # DDP holds the process group, whose threads may abort a Python that is taken down
accelerator.free_memory()
accelerator.end_training()
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accelerate_with_two_micro_batches(processes, tmp_path):
    """A shard says which of the step's samples a call holds: then together they are the call on the whole batch."""
    program = tmp_path / "mine.py"
    program.write_text(ACCELERATED)
    launch = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([*launch, program, tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    losses, weights = plain()
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for own, other in zip(found["weights"], weights, strict=True):
        torch.testing.assert_close(torch.tensor(own), other.flatten(), rtol=1e-5, atol=1e-6)
