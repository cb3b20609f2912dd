"""Data: images and what becomes of them, and any other source of samples."""

from xhat.data.augment import Augmented
from xhat.data.batch import Batch
from xhat.data.null import WithNull
from xhat.data.source import DataSource
from xhat.data.wrap import from_dataset, from_iterable, from_tensors

__all__ = ["Augmented", "Batch", "DataSource", "WithNull", "from_dataset", "from_iterable", "from_tensors"]
