"""Which safetensors files make up a model: those its index lists, else all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.header import TensorEntry, read_header
from zmqpp.errors import ConfigError

INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt")


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the model, in the order of the files and of the bytes in each.

    Raises:
        ConfigError: no safetensors, a shard that is missing or broken, or tensors the index names in vain.
    """
    weight_map = _weight_map(folder)
    paths = _all_files(folder) if weight_map is None else _listed_files(folder, weight_map)
    tensors: dict[str, TensorEntry] = {}
    for path in paths:
        for entry in read_header(path):
            listed = (weight_map or {}).get(entry.name)
            if listed not in (None, path.name):
                continue  # A second copy; the index says which one counts.
            if entry.name in tensors:
                raise ConfigError(
                    f"{folder}: {entry.name} is in {tensors[entry.name].path.name} and in {path.name}, and no "
                    f"{INDEX} says which one counts; remove one of the files"
                )
            tensors[entry.name] = entry
    _check_listed(folder, weight_map or {}, tensors)
    return tensors


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor -> file, as the index says; None without an index."""
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        index: Any = json.loads(path.read_text())
        weight_map = index["weight_map"]
        sound = bool(weight_map) and all(Path(file).name == file for file in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download it again") from None
    if not sound:
        raise ConfigError(f"{path} must have a weight_map of tensors to files in the same folder")
    return dict(weight_map)


def _listed_files(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {_some(missing)}, which {INDEX} lists among {len(names)} files; download the model again"
        )
    return [folder / name for name in names]


def _all_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    # Mistral's own format beside the common one holds the same weights once more.
    common = [path for path in paths if not path.name.startswith("consolidated")]
    if not paths:
        raise _no_weights(folder)
    return common or paths


def _no_weights(folder: Path) -> ConfigError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_FORMATS)
    if others:
        return ConfigError(
            f"{folder} has no *.safetensors, only {_some(others)}: convert it with transformers, "
            f"AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )
    return ConfigError(f"{folder} has no *.safetensors: give the folder that holds the model's weights")


def _check_listed(folder: Path, weight_map: dict[str, str], tensors: dict[str, TensorEntry]) -> None:
    lacking = [name for name in weight_map if name not in tensors]
    if lacking:
        raise ConfigError(
            f"{folder / weight_map[lacking[0]]} lacks the tensor {_some(lacking)}, which {INDEX} says is there; "
            f"download the model again"
        )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
