"""Pipelines of diffusers on disk: what a folder holds, read whole, or named with the way out."""

import contextlib
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xhat.errors import DamagedError, RunError, first_line
from xhat.files.tensors import read_tensors
from xhat.networks.wrappers import unwrapped
from xhat.pipelines.schedulers import import_diffusers, import_transformers, parse

INDEX, LORA = "model_index.json", "pytorch_lora_weights.safetensors"
LIBRARIES = ("diffusers", "transformers")
"""Where the parts of a pipeline may come from: a model_index.json names modules, and nothing else is imported for it."""
SHARD = re.compile(r"-\d{5}-of-\d{5}")


def read_pipeline(folder: str | Path, dtype: torch.dtype | None = None) -> Any:
    """The pipeline of a folder that `save_pretrained` wrote, from safetensors alone, by the libraries' own readers.

    Variants such as fp16 are found by their file names, shards by their index; names that wrappers such as
    DistributedDataParallel and torch.compile put before the weights are taken off.

    Args:
        folder: of the pipeline.
        dtype: of the weights in memory; None is float32.

    Raises:
        RunError: no such folder, something else than a pipeline, a part that is missing, damaged, pickled or from elsewhere.
    """
    require_pipeline(Path(folder))
    with quiet():
        return _read(Path(folder), dtype or torch.float32)


def _read(path: Path, dtype: torch.dtype) -> Any:
    diffusers = import_diffusers()
    index = parse((path / INDEX).read_text(encoding="utf-8"), str(path / INDEX))
    kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise RunError(
            f"{path / INDEX}: _class_name {index.get('_class_name')} is no pipeline of diffusers {diffusers.__version__}"
        )
    options = {"use_safetensors": True, "local_files_only": True, "dtype": dtype}
    read: dict[str, Any] = {}
    parts = _parts(path, index)
    variants = {name: _variant(path / name) for name in parts}
    for name, (library, class_name) in parts.items():
        if (model := _model_class(library, class_name)) is not None:
            read[name] = read_model(path / name, model, options)
    takes = inspect.signature(kind).parameters
    read |= {name: None for name, value in index.items() if value == [None, None] and name in takes}
    reader: Any = kind
    try:
        return reader.from_pretrained(str(path), **read, **options, variant=next(filter(None, variants.values()), None))
    except Exception as error:  # whatever a config makes of the libraries' constructors
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RunError(f"{path} cannot be read as a {kind.__name__}: {first_line(error)}") from None


def require_pipeline(path: Path) -> None:
    """Refuse what is no pipeline, by what it is instead.

    Raises:
        RunError: with the way out.
    """
    if path.is_file():
        raise RunError(
            f"{path} is a file: xhat.pretrained takes folders of pipelines; of a single file make one with diffusers' "
            f'from_single_file("{path}", config=FOLDER) and save_pretrained, or give the pipeline itself'
        )
    if not path.is_dir():
        raise RunError(f"{path} does not exist: xhat reads local folders, such as hf download NAME --local-dir FOLDER writes")
    if (path / INDEX).is_file():
        return
    if (path / LORA).is_file():
        raise RunError(
            f"{path} is a LoRA: open the pipeline that it belongs to with diffusers, "
            f"pipeline.load_lora_weights({str(path)!r}), and give that to xhat.pretrained"
        )
    if (path / "config.json").is_file():
        kind = _class_of(path / "config.json")
        raise RunError(
            f"{path} is one model ({kind}), no pipeline: open its pipeline with diffusers, "
            f"DiffusionPipeline.from_pretrained(BASE, {_part_of(kind)}={kind}.from_pretrained({str(path)!r})), and give that "
            "to xhat.pretrained"
        )
    if any(path.glob("random_states_*.pkl")) or any(path.glob("optimizer.*")):
        inside = [name for name in ("transformer", "unet", "transformer_ema", "unet_ema") if (path / name).is_dir()]
        where = path / (inside or ["model.safetensors"])[0]
        raise RunError(
            f"{path} is a training checkpoint of Accelerate, no pipeline: its model is in {where}; open the base pipeline with "
            "diffusers, put the model or its weights there, and give that to xhat.pretrained"
        )
    raise RunError(f"{path} is no diffusers pipeline: it has no {INDEX}; write one with pipeline.save_pretrained")


def _class_of(path: Path) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    name = values.get("_class_name") if isinstance(values, dict) else None
    return name if isinstance(name, str) else "of another library"


def _part_of(kind: str) -> str:
    """What a pipeline calls a model of this class."""
    return "unet" if kind.startswith("UNet") else "vae" if "Autoencoder" in kind else "transformer"


def _model_class(library: str, name: str) -> Any:
    """The class of a part with weights; None of tokenizers, schedulers and the like."""
    diffusers, transformers = import_diffusers(), import_transformers()
    if library == "transformers" and transformers is not None:
        found, base = getattr(transformers, name, None), transformers.PreTrainedModel
    elif library == "diffusers":
        found, base = getattr(diffusers, name, None), diffusers.ModelMixin
    else:
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _parts(path: Path, index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (library, class) of the parts that a pipeline has.

    Raises:
        RunError: one is missing, or comes from elsewhere.
    """
    parts: dict[str, tuple[str, str]] = {}
    pipelines = import_diffusers().pipelines
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
            continue  # what is null is left out of the pipeline, the rest are settings
        library, kind = value
        if library not in LIBRARIES and not hasattr(pipelines, library):
            raise RunError(
                f"{path / INDEX}: {name} is {library}.{kind}, code that is in none of {', '.join(LIBRARIES)}: open the "
                "pipeline with diffusers, if you trust it, and give that to xhat.pretrained"
            )
        if not (path / name).is_dir():
            raise RunError(
                f"{path} has no {name}/, which {INDEX} names ({kind}): copy the pipeline whole; one that does without can be "
                "loaded by diffusers and given to xhat.pretrained"
            )
        parts[name] = (library, kind)
    return parts


def _variant(folder: Path) -> str | None:
    """The variant whose weights a part has, such as fp16, where it lacks those without a name.

    Raises:
        RunError: its weights are pickled.
    """
    weights = [file.name for file in folder.glob("*.safetensors")]
    if not weights:
        if any(folder.glob("*.bin")):
            raise RunError(
                f"{folder} holds pickled weights (.bin), which xhat never opens: write them with "
                "save_pretrained(..., safe_serialization=True)"
            )
        return None
    variants = [_stem(name).partition(".")[2] for name in weights]
    return None if "" in variants else sorted(variants)[0]


def _stem(name: str) -> str:
    """diffusion_pytorch_model.fp16 of both spellings of its shards."""
    return SHARD.sub("", name).removesuffix(".safetensors")


def read_model(folder: Path, kind: Any, options: dict[str, Any]) -> Any:
    """A model of diffusers with all its weights: what its own reader would fill with random numbers is refused.

    Args:
        folder: of the model, a config.json and its weights.
        kind: its class.
        options: of the reader.

    Raises:
        RunError: weights are missing, too many, pickled, damaged, or do not fit the config beside them.
    """
    variant = _variant(folder)
    try:
        with without_prefixes(folder) as path:
            model, info = kind.from_pretrained(str(path), output_loading_info=True, variant=variant, **options)
    except (DamagedError, RunError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system, and not of what the file holds
            raise
        raise RunError(
            f"{folder} is damaged, or its weights do not fit its config.json ({first_line(error)}): copy both anew"
        ) from None
    known = model.state_dict().keys()
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
    missing = [name for name in info["missing_keys"] if name in known and name not in tied]
    more = info["unexpected_keys"] if kind.__module__.startswith("diffusers") else ()  # of older transformers' files there are
    for what, names in (("lacks", missing), ("has one too many,", more)):
        if names:
            raise RunError(f"the weights of {folder} do not fit its config.json: a {kind.__name__} {what} {sorted(names)[0]}")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The libraries without their bars and advice: what is wrong is raised all the same."""
    libraries = [library for library in (import_diffusers(), import_transformers()) if library is not None]
    kept = [(log, log.get_verbosity()) for log in (library.utils.logging for library in libraries)]
    bars = [log for log, _ in kept if log.is_progress_bar_enabled()]
    try:
        for log, _ in kept:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, level in kept:
            log.set_verbosity(level)
        for log in bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def without_prefixes(folder: Path) -> Iterator[Path]:
    """The folder of a model, or a copy with the names that diffusers knows, where it was saved in wrappers."""
    [*files] = folder.glob("*.safetensors")
    names: list[str] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as held:
                names += held.keys()
        except Exception as error:  # safetensors has an error of its own
            raise RunError(f"{file} is damaged ({first_line(error)}): copy it anew") from None
    bare = unwrapped(names)
    if len(files) != 1 or list(bare) == list(bare.values()):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        tensors = read_tensors(files[0])[1]
        save_file({own: tensors[name] for name, own in bare.items()}, Path(copy) / files[0].name, metadata={"format": "pt"})
        shutil.copy(folder / "config.json", copy)
        yield Path(copy)
