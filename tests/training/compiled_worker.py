"""How many graphs torch.compile makes of a step, from drawn times and noise to the loss; types are not checked here."""

from dataclasses import replace

import torch

import xhat

NETWORKS = {
    "unet": xhat.UNet(channels=1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16, classes=3),
    "volumes": xhat.UNet(channels=1, size=(8, 8, 8), widths=(8, 8), blocks=(1, 1), embedding=16, classes=3),
    "dit": xhat.DiT(channels=1, size=8, width=16, depth=2, heads=2, patch=2, classes=3),
}

for name, network in NETWORKS.items():
    denoiser = xhat.Denoiser(network, xhat.Cosine(), xhat.V)
    loss = xhat.Denoising(xhat.X0, weighting=xhat.weightings.min_snr(5))
    objective = xhat.Objective(denoiser, {"denoise": xhat.Term(loss)})
    x0 = torch.rand(2, 1, *([8] * (3 if name == "volumes" else 2)))
    drawn = objective.draw(x0, step=0, cond={"label": torch.tensor([0, 2])})

    def rest(t, noise, objective=objective, drawn=drawn):
        z = objective._noisy(drawn.x0, t, noise)
        prediction = objective.denoiser(z, t, drawn.cond)
        return objective.per_image("denoise", replace(drawn, t=t, noise=noise, z=z, prediction=prediction)).mean()

    seen = torch._dynamo.explain(rest)(drawn.t, drawn.noise)
    print(name, seen.graph_count, seen.graph_break_count)
