"""Train so many tiny steps with all that a run writes, and print what the process held on the way, as JSON.

python steps.py STEPS FOLDER
"""

import json
import os
import sys

import torch

import xhat
from xhat.training.callbacks import Callback

STEPS, FOLDER = int(sys.argv[1]), sys.argv[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
torch.set_num_threads(1)
held = []


class Held(Callback):
    """Memory and open files, a thousand times."""

    def step(self, at):
        if at.step % max(1, STEPS // 1000) == 0:
            with open("/proc/self/statm") as statm:
                pages = int(statm.read().split()[1])
            held.append((at.step, pages * PAGE, len(os.listdir("/proc/self/fd"))))


images = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
network = xhat.UNet(size=4, channels=1, widths=(4, 4), blocks=(1, 1), embedding=8)
denoiser = xhat.Denoiser(network, xhat.Cosine(), xhat.V)
flat = xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), xhat.multipliers.GradientRatio(0.1, every=50))
objective = xhat.Objective(denoiser, {"denoising": xhat.Term(xhat.Denoising()), "flat": flat})
every = {"log_every": 10, "checkpoint_every": 500, "sample_every": 500, "eval_every": 1000}
xhat.fit(objective, images, FOLDER, held_out=images, callbacks=[Held()], max_steps=STEPS, batch_size=4, compile="off", **every)
print(json.dumps(held))
