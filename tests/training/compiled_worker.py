"""How many graphs torch.compile makes of a step, from drawn times and noise to the loss, and of a whole objective."""

from dataclasses import replace

import torch
import torch._dynamo.testing

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


def whole() -> xhat.Objective:
    """With a penalty, one that counts at every other step, and labels."""
    torch.manual_seed(0)
    network = xhat.UNet(channels=1, size=8, widths=(8, 8), blocks=(1, 1), embedding=16, classes=3)
    smooth = xhat.ImageLoss(xhat.penalties.total_variation)
    terms = {
        "denoise": xhat.Term(xhat.Denoising(xhat.X0, weighting=xhat.weightings.min_snr(5))),
        "smooth": xhat.Term(smooth, weight=0.1),
        "sometimes": xhat.Term(xhat.ImageLoss(xhat.penalties.total_variation), weight=0.1, when=xhat.every(2)),
    }
    return xhat.Objective(xhat.Denoiser(network, xhat.Cosine(), xhat.V), terms)


counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
torch._dynamo.reset()
eager, alone = whole(), whole()
compiled, frames, same = torch.compile(alone, backend=counter), [], []
for step in range(8):
    x0 = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)).clamp(-1, 1)
    losses = [each(x0, step=step, cond={"label": torch.tensor([0, 1, 2, 3])})["loss"] for each in (eager, compiled)]
    for loss in losses:
        loss.backward()
    pairs = zip(eager.parameters(), alone.parameters(), strict=True)
    same.append(all(torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-8) for a, b in pairs) and torch.allclose(*losses))
    frames.append(counter.frame_count)
print("settled", frames[4] == frames[-1], "same", all(same))
torch._dynamo.reset()
seen = torch._dynamo.explain(alone)(x0, step=7, cond={"label": torch.tensor([0, 1, 2, 3])})
print("objective", [len(graph.graph.nodes) > 100 for graph in seen.graphs], seen.graph_break_count)
