"""What the machine is fast at."""

from collections.abc import Mapping

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than float32 here: AMX or AVX512-BF16, or a GPU of Ampere's or later kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found: Mapping[str, object] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
