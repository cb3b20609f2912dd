"""What the networks take for the clean image along a sampling chain."""

from xhat.report.contents import Contents
from xhat.report.html import image, pictures, swatch, text
from xhat.report.section import Section

TIME = "t = "  # before what stands above a column


def trajectories(contents: Contents) -> Section | None:
    """A film of each entry that has one, times above; None if none has."""
    captions = contents.trajectory_times
    times = all(caption.startswith(TIME) for caption in captions)
    columns = "".join(f"<span>{text(caption.removeprefix(TIME) if times else caption)}</span>" for caption in captions)
    above = f'<div class="times">{columns}</div>' if captions else ""
    figures = [
        f"<figure><figcaption>{swatch(i)} {text(e.name)}</figcaption>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="trajectory of {text(e.name)}">'
        f'<div class="film" style="--n:{max(len(captions), 1)}">{above}{image(e.trajectory)}</div></div></figure>'
        for i, e in enumerate(contents.entries)
        if e.trajectory
    ]
    if not figures:
        return None
    lead = (
        "What the network takes for the clean image along a sampling chain, from noise on the left to the sample on the right."
    )
    lead += " Above each column stands its time t." if captions and times else ""
    lead += " All entries start from the same noise; one that decides early shows its last image early." * (len(figures) > 1)
    return Section("trajectories", "Denoising trajectories", lead, pictures("trajectories", figures))
