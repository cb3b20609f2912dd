"""Captioned pictures for the examples: what a data set and its loader give in the scripts of diffusers."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def batches(folder, size, batch_size, steps, seed=0):
    """`steps` batches of (pixels (B, 3, size, size) in [-1, 1], captions), of a folder with a metadata.jsonl, shuffled."""
    root = Path(folder)
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines() if line.strip()]
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (batch_size,), generator=order).tolist()]
        images = [Image.open(root / row["file_name"]).convert("RGB").resize((size, size)) for row in chosen]
        pixels = np.stack([np.asarray(image) for image in images])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, [row["text"] for row in chosen]
