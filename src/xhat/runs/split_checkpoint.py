"""A training state whose tensors are split over processes: a folder that all of them write, and any number of them reads.

The tensors are safetensors files of PyTorch's distributed checkpoints (torch.distributed.checkpoint), of which each process
writes its own; `state.json` says the rest, and the SHA-256 of each of them.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.distributed import from_all, main_process
from xhat.errors import DamagedError
from xhat.files.atomic import digest_of
from xhat.files.values import read_values, write_values

STATE, DRAFT = "state.json", ".checkpoint-{}.partial"


def write_split(path: Path, tensors: dict[str, Tensor], step: int, tree: Any) -> None:
    """Write tensors and what they belong to; all processes take part, and the folder is there once all of it is in it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    draft = path.with_name(DRAFT.format(path.name))
    if main_process():
        for left in path.parent.glob(DRAFT.format("*")):
            shutil.rmtree(left)
        draft.mkdir()
    torch.distributed.barrier()
    writer = HuggingFaceStorageWriter(str(draft), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about its own defaults
        save(dict(tensors), storage_writer=writer)
    names = sorted(file.name for file in draft.glob("*.safetensors"))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    sums = {name: digest_of(draft / name).hex() for name in names[rank::world]}
    every = {name: digest for own in from_all(sums) for name, digest in own.items()}
    if main_process():
        write_values(draft / STATE, {"step": step, "tree": json.dumps(tree), "files": every})
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    torch.distributed.barrier()


def read_split(path: Path) -> tuple[dict[str, str], Mapping[str, Tensor]]:
    """What `write_split` wrote: texts as of a whole checkpoint, and tensors that are read when they are asked for.

    Raises:
        DamagedError: a file is missing, or another than was written.
    """
    try:
        kept = read_values(path / STATE, dict[str, Any])
        for name, digest in kept["files"].items():
            if digest_of(path / name).hex() != digest:
                raise DamagedError(f"{name} is another than was written")
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(str(error.filename)).name} is missing") from None
    return {"step": str(kept["step"]), "tree": kept["tree"]}, _Tensors(path)


class _Tensors(Mapping[str, Tensor]):
    """name -> all of a tensor, read from the files of all processes that wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _reader(self) -> Any:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        reader = HuggingFaceStorageReader(str(self.path))
        metadata = reader.read_metadata()
        reader.read_metadata = lambda: metadata  # type: ignore[method-assign]  # of all files, once
        return reader, metadata.state_dict_metadata

    def __getitem__(self, name: str) -> Tensor:
        from torch.distributed.checkpoint.state_dict_loader import load

        reader, known = self._reader
        found = {name: torch.empty(known[name].size, dtype=known[name].properties.dtype)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(found, storage_reader=reader, no_dist=True)
        return found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader[1])

    def __len__(self) -> int:
        return len(self._reader[1])
