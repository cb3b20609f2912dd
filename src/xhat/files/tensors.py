"""Tensors and texts in one file: safetensors, with a checksum over all of it."""

import json
import struct
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from xhat.errors import DamagedError
from xhat.files.atomic import naming, write_bytes
from xhat.files.seal import FORMAT, KEY, OPEN, require_sealed, sealed

LENGTH = struct.Struct("<Q")
MOST_HEADER = 100_000_000
"""Bytes: what safetensors itself allows."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names."""


class Copied:
    """The bytes of a file of tensors and texts, as they were when it was made: what becomes of the tensors changes nothing.

    The library's own `save` builds the bytes twice, and nothing else runs in Python meanwhile; here tensors are copied once, to
    where they stand in the file.

    Args:
        tensors: on any device. Of those that share memory each has its own copy.
        metadata: texts.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # as the library aligns them
        head: dict[str, Any] = {"__metadata__": {**metadata, "format": FORMAT, KEY: OPEN}}
        ends = list(accumulate((x.nbytes for _, x in ordered), initial=0))
        on_gpu = any(x.is_cuda for _, x in ordered)
        self.body = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=on_gpu)
        for (name, x), first, end in zip(ordered, ends, ends[1:], strict=False):
            head[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [first, end]}
            if end > first:
                self.body[first:end].view(x.dtype).view(x.shape).copy_(x.detach(), non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()
        text = json.dumps(head, separators=(",", ":")).encode()
        self.head = LENGTH.pack(len(text) + -len(text) % LENGTH.size) + text + b" " * (-len(text) % LENGTH.size)

    def write(self, path: Path) -> None:
        """Write the file; what was there is replaced.

        Raises:
            OSError: see `write_bytes`.
        """
        write_bytes(path, *sealed(self.head, self.body.numpy().data))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, which are copied to the CPU, and texts; what was there is replaced.

    Raises:
        OSError: see `write_bytes`.
    """
    Copied(tensors, metadata).write(path)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Texts and tensors of a file, in memory: a mapped file that is cut later would be a bus error.

    Raises:
        DamagedError: it is no such file, or another than was written.
        OSError: it cannot be read, whatever is in it.
    """
    with naming(path), path.open("rb") as file:  # what a damaged header announces is not allocated
        _require_size(file.read(LENGTH.size), path.stat().st_size)
        file.seek(0)
        data = file.read()
    _require_size(data[: LENGTH.size], len(data))
    head = LENGTH.size + LENGTH.unpack_from(data)[0]
    try:
        metadata = json.loads(data[LENGTH.size : head]).get("__metadata__") or {}
        if metadata.get("format") == FORMAT or KEY in metadata:  # others are of earlier versions, or of other libraries
            require_sealed(data, head)
        return {str(key): str(value) for key, value in metadata.items()}, load(data)
    except DamagedError:
        raise
    except (SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"it is no safetensors file ({type(error).__name__})") from None


def _require_size(start: bytes, size: int) -> None:
    if len(start) < LENGTH.size or not 2 <= LENGTH.unpack(start)[0] <= min(size - LENGTH.size, MOST_HEADER):
        raise DamagedError("it is no safetensors file, or cut short")
