"""A model on disk, as its config.json and the headers of its files describe it; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.config import (
    PIPELINE_FILE,
    ExportedStage,
    exported_stage,
    layer_count,
    read_config,
    says_tied,
)
from zmqpp.checkpoint.files import read_tensors
from zmqpp.checkpoint.fingerprint import fingerprint
from zmqpp.checkpoint.header import TensorEntry
from zmqpp.checkpoint.hub import fetch
from zmqpp.checkpoint.names import Role, all_layer_lists, layer_lists, layer_of, longest_list, role_of
from zmqpp.errors import ConfigError


@dataclass(frozen=True)
class Checkpoint:
    """An opened model.

    Attributes:
        folder: where it lies; for a hub id the cache's snapshot.
        model: what the user called it.
        config: config.json.
        total_layers: layers of the whole model, even where this folder holds a part of them.
        tensors: name -> entry, in the order of files and bytes.
        decoder: the module list of the layers, `model.layers`.
        tied: the last stage needs the embeddings as its output head.
        exported: which stage the folder was exported as; None for a full model.
    """

    folder: Path
    model: str
    config: dict[str, Any]
    total_layers: int
    tensors: dict[str, TensorEntry]
    decoder: str
    tied: bool
    exported: ExportedStage | None = None

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Read a folder, or a hub id once it is fetched.

        Raises:
            ConfigError: what is missing or broken, and what to do.
        """
        if (Path(model).expanduser() / PIPELINE_FILE).exists():
            raise ConfigError(
                f"{model} is a finished export: give the full model, or one of its stage_* folders"
            )
        config = read_config(model)
        folder = Path(model).expanduser() if config is not None else fetch(model)
        config = config if config is not None else read_config(str(folder)) or {}
        total = layer_count(config)
        if total is None or total < 1:
            raise ConfigError(
                f"{folder / 'config.json'} does not say how many layers the model has (num_hidden_layers)"
            )
        exported = exported_stage(config)
        tensors = read_tensors(folder)
        extra = config.get("num_nextn_predict_layers")
        decoder = _decoder(folder, tensors, total + (extra if type(extra) is int else 0))
        opened = cls(folder, model, config, total, tensors, decoder, False, exported)
        opened._check_layers()
        # A file without a head has the embeddings for one; of an exported stage that cannot be said.
        headless = exported is None and Role.HEAD not in opened.roles.values()
        tied = says_tied(config) or headless
        return cls(folder, model, config, total, tensors, decoder, bool(tied), exported)

    @cached_property
    def layers(self) -> dict[str, int]:
        """Tensor -> its layer, for those in the decoder's layers."""
        found = {name: layer_of(name, self.decoder) for name in self.tensors}
        return {name: layer for name, layer in found.items() if layer is not None}

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Tensor -> its role, for those outside the decoder's layers."""
        return {name: role_of(name, self.decoder) for name in self.tensors if name not in self.layers}

    @property
    def name(self) -> str:
        """What to call it in files that may travel: the hub id, or the folder's own name."""
        return self.folder.resolve().name if Path(self.model).expanduser().is_dir() else self.model

    @property
    def files(self) -> list[Path]:
        """The safetensors files that hold its tensors."""
        return sorted({entry.path for entry in self.tensors.values()})

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(entry.size_bytes for entry in self.tensors.values())

    @property
    def architecture(self) -> str:
        """The first of `architectures`; empty when config.json names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def needs_remote_code(self) -> bool:
        """Whether serving it takes --trust-remote-code; reading it does not."""
        return "auto_map" in self.config

    def fingerprint(self) -> str:
        """What tells this model from another, or from itself with other weights."""
        return fingerprint(self.files, (self.folder / "config.json").read_bytes())

    def _check_layers(self) -> None:
        expected = range(self.total_layers)
        if self.exported:
            expected = range(self.exported.layers.start, self.exported.layers.end)
        held = set(self.layers.values())
        missing = [layer for layer in expected if layer not in held]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(
                f"{self.folder} lacks layer {missing[0]}{more}: config.json says {self.total_layers} layers, the files "
                f"hold tensors for {len(held)} ({self.decoder}.*); download the model again"
            )


def _decoder(folder: Path, tensors: dict[str, TensorEntry], limit: int) -> str:
    """The layers' list; towers are looked at last, as ChatGLM calls its decoder `transformer.encoder.layers`."""
    for lists in (layer_lists(tensors), all_layer_lists(tensors)):
        if found := longest_list(lists, limit):
            return found
    longest = max(((max(held) + 1, name) for name, held in layer_lists(tensors).items()), default=None)
    held = (
        f"{longest[1]}.* has {longest[0]}" if longest else f"none of its {len(tensors)} tensors is of a layer"
    )
    raise ConfigError(
        f"{folder}: config.json says {limit} layers, {held}; the files and config.json do not belong together"
    )
