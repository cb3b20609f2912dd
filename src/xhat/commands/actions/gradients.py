"""What xhat gradients does."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from xhat.analysis.gradients import GradientProfile, gradient_profile
from xhat.commands.gradients import is_run
from xhat.commands.tables import new_table, number_column, show_table
from xhat.commands.terminal import console, notes, print_json
from xhat.config.build import build_denoiser, build_objective
from xhat.config.data import build_data
from xhat.config.parsing import read_config, recipe_path
from xhat.data.source import Feed
from xhat.data.summary import notices
from xhat.errors import UsageError
from xhat.evaluation.pictures import save_gradients
from xhat.losses.chains import FullChain
from xhat.losses.image import ImageLoss
from xhat.losses.penalties import total_variation
from xhat.objective.objective import Objective
from xhat.rng import Shard
from xhat.runs.load import load
from xhat.tensors import device_of


def act(options: Any) -> int:
    """Print, or draw, how the terms of a run or a recipe pull at the network."""
    try:
        profile, trained = _profile(options.run, options.n, options.chain, options.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    save_gradients(options.picture, profile, force=options.force)
    if options.json:
        print_json({"run": options.run, "step": trained, "images": options.n, **asdict(profile)})
    else:
        _show(profile, options.run, trained, options.picture)
    return 0


def _profile(source: str, n: int, chain: int, seed: int) -> tuple[GradientProfile, int | None]:
    """The profile, and the steps trained; None for untrained weights."""
    if is_run(source):
        trained = load(source)
        config, denoiser, step = trained.config, trained.denoiser, trained.step
        data = build_data(replace(config, image_size=trained.shape.image_size), share=0.0)
    else:
        config, step = read_config(recipe_path(source)), None
        data = build_data(config, share=0.0)
        torch.manual_seed(config.seed)
        denoiser = build_denoiser(config, data.shape)
    objective: Objective = build_objective(config, denoiser)
    if data.images is not None and n > len(data.images.train):
        raise UsageError(f"--n {n}: {data.images.train.name} has {len(data.images.train)} images")
    batch = Feed(data.train, data.shape, device_of(denoiser.net)).get(seed, Shard(0, n), n)
    if batch.x0.is_meta:
        raise UsageError(f"{source} was trained on prompts alone: gradients are compared at images, and there are none")
    stand_in = {"total_variation": ImageLoss(total_variation, FullChain(steps=chain))}
    if step is None and data.images is not None:  # a run's own data were spoken of when it was trained
        notes(notices(data.images.train))
    own = any(isinstance(term.loss, ImageLoss) for term in objective.terms.values())
    chains = None if own else stand_in if data.shape.is_picture else {}
    return gradient_profile(
        objective, batch.x0, cond=batch.cond, extra=batch.extra, step=seed, steps=chain, chains=chains
    ), step


def _show(profile: GradientProfile, source: str, step: int | None, picture: Path) -> None:
    out = console()
    out.print(f"{source}  {'untrained weights' if step is None else f'after {step} steps'}", style="bold", soft_wrap=True)
    numbers = [number_column(f"{name}:\n{what}") for name in profile.terms for what in ("norm", "cosine")]
    table = new_table(number_column("logsnr"), *numbers)
    for i, level in enumerate(profile.logsnr):
        cells = []
        for term in profile.terms.values():
            cells += [f"{term.norm[i]:.3g}", "" if math.isnan(term.cosine[i]) else f"{term.cosine[i]:+.2f}"]
        table.add_row(f"{level:6.2f}", *cells)
    show_table(out, table)
    out.print("norm: of the gradient of the unweighted term")
    out.print("cosine: to the gradient of the other terms whose weights are numbers; below 0 they disagree")
    for name, chain in profile.chains.items():
        first, last = chain.norm[0], chain.norm[-1]
        out.print(f"{name}, a chain of {len(chain.t) - 1} steps: ‖d penalty / d z‖ is")
        ratio = f"  {first / last:.3g} times that" if last > 0 else ""
        out.print(f"  {last:.3g} at the data, {first:.3g} at pure noise,{ratio}, at most {max(chain.norm):.3g}")
    out.print(f"picture: {picture}", soft_wrap=True)
