"""`pipeline.json`: the last file an export writes, and what says that it is whole."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zmqpp.checkpoint.config import PIPELINE_FILE
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange
from zmqpp.units import size

VERSION = 1


class StageRecord(msgspec.Struct, frozen=True):
    """One stage's folder.

    Attributes:
        folder: below the export's own, `stage_0`.
        tensors: file -> tensor -> blake2b of 16 bytes, in hex, of the tensor's bytes.
    """

    folder: str
    start_layer: int
    end_layer: int
    weight_bytes: int = 0
    tensors: dict[str, dict[str, str]] = {}

    @property
    def layers(self) -> LayerRange:
        return LayerRange(self.start_layer, self.end_layer)


class PipelineManifest(msgspec.Struct, frozen=True):
    """What was exported, from what.

    Attributes:
        source: the model's name; no path.
        fingerprint: of the model's files.
        max_shard_bytes: as the export was asked for.
    """

    source: str
    fingerprint: str
    total_layers: int
    max_shard_bytes: int
    stages: list[StageRecord]
    version: int = VERSION
    zmqpp_version: str = ""

    @property
    def ranges(self) -> list[LayerRange]:
        return [stage.layers for stage in self.stages]

    @property
    def folders(self) -> list[str]:
        return [stage.folder for stage in self.stages]

    def is_of_the_same(self, other: PipelineManifest) -> bool:
        """Whether the same command on the same model would have made both."""
        return (self.fingerprint, self.ranges, self.max_shard_bytes) == (
            other.fingerprint,
            other.ranges,
            other.max_shard_bytes,
        )

    def difference(self, other: PipelineManifest) -> str:
        """What this export is that `other` is not, `an export of Llama-3-8B with ranges 0-16 16-32, not 0-8 ..`."""
        if self.fingerprint != other.fingerprint:
            same_name = self.source == other.source
            return f"an export of {f'another {self.source}' if same_name else self.source}, not of {other.source}"
        if self.ranges != other.ranges:
            return f"an export of {self.source} with ranges {_text(self.ranges)}, not {_text(other.ranges)}"
        return f"an export of {self.source} in files of {size(self.max_shard_bytes)}, not {size(other.max_shard_bytes)}"

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def _text(ranges: list[LayerRange]) -> str:
    return " ".join(map(str, ranges))


def read_manifest(folder: Path, name: str = PIPELINE_FILE) -> PipelineManifest:
    """The manifest of a finished export.

    Raises:
        ConfigError: there is none, so the export is not whole, or it cannot be read.
    """
    path = folder / name
    try:
        found = msgspec.json.decode(path.read_bytes(), type=PipelineManifest)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {PIPELINE_FILE}: it is no finished export; run the same zmqpp export again, "
            f"which goes on from where it stopped"
        ) from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; export again with --overwrite") from None
    sound = all(Path(stage.folder).name == stage.folder for stage in found.stages)
    sound = sound and all(0 <= stage.start_layer < stage.end_layer for stage in found.stages)
    if found.version != VERSION or not found.stages or not sound:
        raise ConfigError(f"{path} is not of version {VERSION} of this format; export again with --overwrite")
    return found
