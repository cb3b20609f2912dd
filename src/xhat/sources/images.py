"""A folder of images that are decoded when they are asked for, and never kept."""

from pathlib import Path

import torch
from PIL import Image

from xhat.data.classes import classes_of
from xhat.data.files import list_images
from xhat.data.picture import opened_image
from xhat.data.size import size_of
from xhat.errors import DataError, DataNotFoundError
from xhat.registry import DATA
from xhat.sources.decoded import picture_of
from xhat.sources.pictures import Pictures, pictures_as_rows


@DATA.register
def images(
    folder: str,
    *,
    labels: bool = False,
    image_size: int | str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Pictures:
    """Image files below a folder, decoded by workers: nothing is kept on disk, and in memory only what fits.

    `--data FOLDER` decodes them once for all runs, into the cache.

    Args:
        folder: of the images, of 8 bits.
        labels: the network is told the sub-folder.
        image_size: as of a config.
        held_out: share to measure on.
        seed: of the order.
        skip_corrupt: take the next image for one that cannot be read.

    Raises:
        DataError: there are none.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f'data "{folder}" does not exist: give a folder of images')
    listing = list_images(root)

    def picture(number: int) -> Image.Image:
        path = listing.paths[number]
        with opened_image(path) as image:
            return picture_of(image, str(path))

    found = classes_of(root, listing.paths) if labels else None
    if isinstance(found, str):
        raise DataError(f"{root} has no labels: {found}; or leave labels out")
    numbers, names = found or (None, ())
    return pictures_as_rows(
        picture,
        len(listing.paths),
        f"{listing.stamp[:32]}",
        str(root),
        size=size_of(image_size),
        labels=None if numbers is None else torch.tensor(numbers),
        names=names,
        classes=len(names) if labels else None,
        held_out=held_out,
        seed=seed,
        skip=skip_corrupt,
    )
