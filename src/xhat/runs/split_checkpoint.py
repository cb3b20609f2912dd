"""A training state whose tensors are split over processes: a folder that all of them write, and any number of them reads.

The tensors are safetensors files of PyTorch's distributed checkpoints (torch.distributed.checkpoint), of which each process
writes its own; `state.json` says the rest, and the SHA-256 of each of them.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xhat.diffusion.sharded import part
from xhat.distributed import from_all, main_process
from xhat.errors import DamagedError
from xhat.files.atomic import digest_of, sync, sync_folder
from xhat.files.values import read_values, write_values

STATE, DRAFT = "state.json", ".checkpoint-{}.partial"


def split_copy(tensors: dict[str, Tensor], step: int, tree: Any, group: Any = None) -> Callable[[Path], None]:
    """A copy of tensors on the CPU, and what writes it with what they belong to, for all processes to call.

    Args:
        tensors: by name.
        step: steps done.
        tree: see `checkpoint_of`.
        group: of all processes, by way of the CPU, that is used for nothing else while a thread writes.
    """
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    gpu = any(part(x).is_cuda for x in tensors.values())
    stager = DefaultStager(StagingOptions(gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu))
    copied: Any = stager.stage(dict(tensors))
    return lambda path: _write(path, copied, step, tree, group)


def _write(path: Path, tensors: dict[str, Tensor], step: int, tree: Any, group: Any) -> None:
    """The folder is there once all of it is in it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    draft = path.with_name(DRAFT.format(path.name))
    if main_process():
        for left in path.parent.glob(DRAFT.format("*")):
            shutil.rmtree(left)
        draft.mkdir()
    torch.distributed.barrier(group)
    writer = HuggingFaceStorageWriter(str(draft), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about its own defaults
        save(tensors, storage_writer=writer, process_group=group)
    names = sorted(file.name for file in draft.glob("*.safetensors"))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = names[rank::world]
    for name in own:
        sync(draft / name)
    sums = {name: digest_of(draft / name).hex() for name in own}
    every = {name: digest for each in from_all(sums, group) for name, digest in each.items()}
    if main_process():
        write_values(draft / STATE, {"step": step, "tree": json.dumps(tree), "files": every})
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
        sync_folder(path.parent)
    torch.distributed.barrier(group)


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
