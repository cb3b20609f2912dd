"""Samples, all from the same noise."""

from xhat.report.contents import Contents
from xhat.report.html import image, pictures, swatch, text
from xhat.report.section import Section


def samples(contents: Contents) -> Section | None:
    """A grid of each entry that has one; None if none has."""
    figures = [
        f"<figure>{image(e.samples)}<figcaption>{swatch(i)} {text(e.name)}</figcaption></figure>"
        for i, e in enumerate(contents.entries)
        if e.samples
    ]
    lead = "All entries start from the same noise, so that images in the same place can be compared one by one."
    lead = lead if len(figures) > 1 else "Images that the model draws from noise."
    return Section("samples", "Samples", lead, pictures("samples", figures)) if figures else None
