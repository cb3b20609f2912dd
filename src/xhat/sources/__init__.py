"""Sources of data that a config names, `fields(darcy.npy)` and others, and what normalises their values."""

from xhat.data.units import Units, asinh, bits, given, log, min_max, standard
from xhat.sources.fields import fields
from xhat.sources.images import images
from xhat.sources.shards import webdataset
from xhat.sources.table_streams import huggingface_stream
from xhat.sources.tables import huggingface, parquet

__all__ = [
    "Units",
    "asinh",
    "bits",
    "fields",
    "given",
    "huggingface",
    "huggingface_stream",
    "images",
    "log",
    "min_max",
    "parquet",
    "standard",
    "webdataset",
]
