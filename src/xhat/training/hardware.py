"""What the machine is fast at: bf16, and torch.compile."""

import shutil
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from xhat.errors import first_line

COMPILE_STEPS, COMPILE_SECONDS = 1500, 100


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than float32 here: AMX or AVX512-BF16, or a GPU of Ampere's or later kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found: Mapping[str, object] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def repays_compiling(device: torch.device, steps: int | None, seconds: float | None) -> bool:
    """Whether a budget is long enough for the half minute that torch.compile takes; and on a CPU a C++ compiler is there.

    A function of the budget alone, so that an interrupted run and its continuation decide alike.
    """
    long_enough = (steps or 0) >= COMPILE_STEPS or (seconds or 0) >= COMPILE_SECONDS
    return long_enough and (device.type == "cuda" or any(map(shutil.which, ("g++", "clang++"))))


def keep_buffers() -> None:
    """Let compiled networks be differentiated twice: by default their backward pass reuses the memory of what it has read."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def compile_network(net: nn.Module, z: Tensor, t: Tensor, cond: Mapping[str, Tensor], autocast: torch.autocast) -> str | None:
    """Compile in place and try one forward and backward pass; on failure the network stays as it was.

    Returns:
        None, or the first line of what went wrong.
    """
    net.compile(dynamic=False)
    try:
        with autocast:
            out = net(z, t, **cond)
        out.sum().backward()
    except RuntimeError as error:  # dynamo's and inductor's errors, a compiler that is missing or broken among them
        net._compiled_call_impl = None
        return first_line(error)
    finally:
        net.zero_grad()
    return None
