"""What `accelerate launch` was asked for and a training does in its own way: refused, or noted, in one line."""

import os
import warnings

from xhat.distributed import main_process
from xhat.errors import RunError

INSTEAD = {
    "ACCELERATE_USE_FSDP": ("FSDP", "xhat splits the weights itself, with --shard true"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "xhat splits the weights by FSDP2, with --shard true"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "xhat splits the weights by FSDP2, with --shard true"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config", "xhat splits the weights by FSDP2, with --shard true"),
}
"""Variables that the launcher sets to true: what they ask for, and what there is."""
UNREAD = {
    "ACCELERATE_MIXED_PRECISION": ("mixed precision", ("", "no"), "--precision"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", ("", "1"), "--accumulate"),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient clipping", ("", "none"), "--optimizer.grad_clip"),
}
"""Variables that change nothing here: what they are about, values that ask for nothing, the option that decides."""
DYNAMO = "ACCELERATE_DYNAMO_BACKEND"


def require_plain_launch() -> None:
    """Look at what the launcher has set.

    Raises:
        RunError: it asks for another way to share out the weights, or to compile.
    """
    for name, (what, instead) in INSTEAD.items():
        if os.environ.get(name, "").lower() == "true":
            raise RunError(f"accelerate launch asks for {what}: {instead}; launch without it")
    if os.environ.get(DYNAMO, "no").lower() not in ("", "no"):
        raise RunError("accelerate launch asks to compile: xhat does, with --compile; launch without a dynamo backend")
    for name, (what, nothing, option) in UNREAD.items():
        if os.environ.get(name, "").lower() not in nothing and main_process():
            warnings.warn(f"accelerate launch asks for {what}, which {option} decides: it changes nothing", stacklevel=2)
