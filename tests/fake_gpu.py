"""A GPU that is not there: what would be on it has a shape and no values, and whoever waits for a value is caught."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from xhat import tensors


class _Module(_DummyBackendModule):
    """What autocast asks a kind of device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("gpu", _Module())
GPU = torch.device("gpu", 0)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
"""Operators whose result the host needs, to go on or to know a shape."""


class WaitsError(AssertionError):
    """The host would wait for the GPU here."""


class FakeGPU(TorchDispatchMode):
    """Operators on this GPU are made of shapes alone, all others are as always.

    Raises:
        WaitsError: by an operator that gives the host a number or a shape; a copy that is not asked to be asynchronous; a copy
             from memory of the host that is not pinned, which CUDA begins only when the GPU has come so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pinned: set[int] = set()
        self.operators: list[str] = []
        self.watching = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor | torch.device)]
        name = func.name().removeprefix("aten::")
        if "pin_memory" in name:
            return func(*args, **kwargs) if name == "is_pinned" else self._pinned(args[0])
        if not any(device_of(x).type == "gpu" for x in given):
            return func(*args, **kwargs)
        if self.watching:
            self.operators.append(name)
        if self.watching and (
            name.startswith(WAITS)
            or (name.startswith("index.Tensor") and any(x.dtype == torch.bool for x in tree_leaves(args[1])))
        ):
            raise WaitsError(name)
        with self.fake:
            found = func(*tree_map(self._shape_of, args), **tree_map(self._shape_of, kwargs))
        if self.watching:
            self._require_asynchronous(name, given, found, args, kwargs)
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Here nothing may wait."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def _shape_of(self, x):
        return self.fake.from_tensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) else x

    def _pinned(self, x: torch.Tensor) -> torch.Tensor:
        self.pinned.add(x.untyped_storage().data_ptr())
        return x

    def _require_asynchronous(self, name, given, found, args, kwargs):
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        if not name.startswith(("_to_copy", "copy_")):
            return
        source = tensors[-1] if name.startswith("copy_") else tensors[0]
        target = tensors[0] if name.startswith("copy_") else found
        if source.device.type == target.device.type:
            return
        asynchronous = kwargs.get("non_blocking") or (name.startswith("copy_") and len(args) > 2 and args[2])
        if not asynchronous:
            raise WaitsError(f"{name} from {source.device} to {target.device}")
        if source.device.type == "cpu" and source.untyped_storage().data_ptr() not in self.pinned:
            raise WaitsError(f"{name} of memory that is not pinned")


def device_of(x: torch.Tensor | torch.device) -> torch.device:
    return x if isinstance(x, torch.device) else x.device


def move(module: nn.Module, gpu: FakeGPU) -> nn.Module:
    """All parameters and buffers of a module to the GPU, in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(there(p.data, gpu), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = there(b, gpu)
    return module


def there(x: torch.Tensor, gpu: FakeGPU) -> torch.Tensor:
    with gpu.fake:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=GPU)


@contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """With such a GPU; its random numbers come of generators of the CPU."""
    generator, gpu = torch.Generator, FakeGPU()
    with (
        patch.object(torch, "Generator", lambda device="cpu": generator()),
        patch.object(tensors, "PINNED", {GPU.type}),
        gpu,
    ):
        yield gpu
