"""Weights saved from a wrapped network: DistributedDataParallel puts `module.` before every name, torch.compile `_orig_mod.`"""

from collections.abc import Collection, Mapping

from torch import Tensor

PREFIXES, COUNTER = ("module.", "_orig_mod."), "n_averaged"
"""What wrappers put before every name, and what AveragedModel keeps beside them."""


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """Each name as the network itself has it, by the name in the file.

    A prefix is taken off only where every name has it: a network may have a part of its own called module.
    """
    bare = {name: name for name in names if name != COUNTER}
    while prefix := next((p for p in PREFIXES if bare and all(n.startswith(p) for n in bare.values())), None):
        bare = {name: own.removeprefix(prefix) for name, own in bare.items()}
    return bare if bare != {n: n for n in bare} else {n: n for n in names}


def named_for(own: Collection[str], tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """A file's tensors under a model's own names, where the model, or the part of it, was saved in wrappers.

    Args:
        own: names that the model knows; where it knows all of the file's, they stay what they are.
        tensors: of the file.
        part: that may have been wrapped by itself, "net.".
    """
    if set(tensors) <= set(own):
        return dict(tensors)
    whole = {bare: tensors[name] for name, bare in unwrapped(list(tensors)).items()}
    inner = unwrapped([name.removeprefix(part) for name in whole if name.startswith(part)])
    return {name: x for name, x in whole.items() if not name.startswith(part)} | {
        part + bare: whole[part + name] for name, bare in inner.items()
    }
