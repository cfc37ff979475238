"""A dict of values <-> a manifest and buffers: what a tensor dict looks like on the wire.

`_manifest_writer` and `_manifest_reader` do it for any dict. In front of them stands a memory of what dicts looked
like: those of dense tensors only, with keys, dtypes and shapes seen before (a decode step's), are described
and rebuilt from it without looking into a manifest again. Only what those two accepted is ever remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import torch

from zmqpp import _engine, _manifest_reader, _manifest_writer
from zmqpp._arrival import Arrival, is_reached
from zmqpp._manifest import ALIGN, TENSOR, WIRE_DTYPES
from zmqpp._manifest_writer import Encoded

__all__ = ["WIRE_DTYPES", "Encoded", "decode", "encode"]

_MAX_REMEMBERED = 256
"""Manifests, on either side; all are forgotten when there would be more."""
_MAX_REMEMBERED_BYTES = 16 << 10
"""Of one manifest."""


def encode(values: dict[str, Any], compression: str = "none") -> Encoded:
    """Describe `values`; tensors and arrays that lie contiguous in the memory of the CPU or of a CUDA device are
    referred to, not copied.

    Args:
        compression: of large tensors of floats, which then are copied; one of `config.COMPRESSIONS`.
    Raises:
        UnsupportedError (a TypeError): a value of another type; the text names its key.
        ConfigError (a ValueError): nested deeper than 64, or within itself; or everything that is not in buffers
            makes more than 16 MiB (the text names the largest key): long lists belong into a tensor or array.
    """
    if compression != "none":
        return _manifest_writer.encode(values, compression)
    plain = _describe(values)
    if plain is None:
        return _manifest_writer.encode(values)
    signature, spans = plain
    manifest = _written.get(signature)
    if manifest is not None:
        return Encoded(manifest, spans, [*values.values()])
    encoded = _manifest_writer.encode(values)
    if encoded.spans == spans and not any(value.is_complex() for value in values.values()):
        _remember(_written, signature, encoded.manifest, len(encoded.manifest))
    return encoded


def decode(
    manifest: bytes,
    block: _engine.Block | None,
    device: torch.device | None = None,
    everything: bool = False,
    *,
    arrival: Arrival | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """Rebuild the dict. Tensors and arrays are writable views of `block` (None without payload).

    Args:
        manifest: checked for well-formed msgpack by the engine, and for everything else here.
        device: where tensors go that were not in CPU memory at the sender; None = they stay in CPU memory. On a
            CUDA device they can be used on its current stream at once, which waits for them.
        everything: those go there too that were in CPU memory.
        arrival: of `block` on `device`, for CUDA tensors, which the caller makes streams wait for; None = the current
            stream waits for them.
        limit_bytes: what packed tensors may make when they are unpacked, in all; None = any.
    Raises:
        MalformedError: the bytes are not what `encode` writes.
        ResourceError: no memory for it.
    """
    layout = _read.get(manifest)
    if layout is not None and block is not None and len(block) == layout.size:
        if device is None or not (everything or layout.on_device):
            return layout.tensors(block)
        if (everything or layout.is_uniform) and device.type == "cuda" and is_reached():
            return layout.arrivals(block, device, arrival)
    values = _manifest_reader.decode(
        manifest, block, device, everything, arrival=arrival, limit_bytes=limit_bytes
    )
    if layout is None and block is not None:
        _learn(manifest, block, values)
    return values


# ---- dicts that were written before ----------------------------------------------------------------------

_written: dict[Any, bytes] = {}  # what `_describe` says of a dict -> its manifest


def _describe_plain(values: dict[str, Any]) -> tuple[Any, list[tuple[int, int]]] | None:
    """Keys, dtypes and shapes, and where the bytes are; None where not all can be dense CPU tensors with elements.

    What the writer refuses has another dtype than what is remembered (quantised, packed), or no memory that one
    can ask for (sparse, meta, inside vmap and the like), or no shape (nested). What it copies is not contiguous,
    negated, or conjugate; that last is not looked for here, so no complex tensors are remembered.
    """
    if type(values) is not dict:
        return None
    signature: list[Any] = []
    spans = []
    try:
        for key, value in values.items():
            if (
                type(value) is not _Tensor
                or type(key) is not str
                or not value.is_cpu
                or not value.is_contiguous()
                or value.is_neg()
            ):
                return None
            address = value.data_ptr()
            if not address:
                return None
            signature += (key, value.dtype, value.shape)
            spans.append((address, value.nbytes))
    except Exception:  # whatever it is, the writer says it with the key's name
        return None
    return tuple(signature), spans


_Tensor = torch.Tensor
_exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # since torch 2.10
_describe = (
    _engine.describe_plain
    if _exchange is not None and _engine.use_tensor_type(torch.Tensor, _exchange)
    else _describe_plain
)
"""The engine reads the same through DLPack in a third of the time."""


# ---- manifests that were read before ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a dict's tensors lie in its payload."""

    keys: tuple[str, ...]
    size: int  # of the payload
    buffers: _engine.Layout
    shapes: tuple[tuple[list[int], torch.dtype, int, int], ...] = ()  # dims, dtype, offset, bytes of each
    on_device: bool = False  # some were, at the sender
    is_uniform: bool = True  # all were, or none

    def tensors(self, block: _engine.Block) -> dict[str, Any]:
        # As many as keys; to say so by `strict` would cost a tenth of the time.
        return dict(zip(self.keys, map(_from_dlpack, block.capsules(self.buffers))))  # noqa: B905

    def arrivals(
        self, block: _engine.Block, device: torch.device, given: Arrival | None = None
    ) -> dict[str, Any]:
        arrival = given or Arrival(block, device)
        values = {key: arrival.tensor(*shape) for key, shape in zip(self.keys, self.shapes, strict=True)}
        arrival.start()
        if given is None:
            arrival.hold_back()
        return values


_UNFIT = _Layout((), -1, _engine.Layout([]))
"""Fits no payload: the reader has to look at it each time."""

_read: dict[bytes, _Layout | None] = {}  # None: seen once; what never comes again shall cost little
_from_dlpack: Any = getattr(torch._C, "_from_dlpack", None) or torch.utils.dlpack.from_dlpack
_manifest_decoder = msgspec.msgpack.Decoder()

_DLPACK_TYPES = {
    **{"bool": (6, 8), "bfloat16": (4, 16)},
    **{f"{sign}int{bits}": (int(sign == "u"), bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    **{f"complex{bits}": (5, bits) for bits in (64, 128)},
}
"""Wire name of a dtype -> DLPack's type code, and bits."""


def _learn(manifest: bytes, block: _engine.Block, values: dict[str, Any]) -> None:
    """Remember a manifest that the reader accepted."""
    if all(type(value) is _Tensor for value in values.values()):
        layout = _layout_of(manifest, block, values) if manifest in _read else None
        _remember(_read, manifest, layout, len(manifest))


def _layout_of(manifest: bytes, block: _engine.Block, values: dict[str, torch.Tensor]) -> _Layout:
    sizes, root = _manifest_decoder.decode(manifest)
    ends = accumulate((size + ALIGN - 1) // ALIGN * ALIGN for size in sizes)
    offsets = [0, *ends]
    buffers, shapes, places = [], [], []
    for tag, index, *_, name, on_device, dims in root[2::2]:
        if tag != TENSOR or name not in _DLPACK_TYPES or not sizes[index]:
            return _UNFIT
        buffers.append((offsets[index], *_DLPACK_TYPES[name], dims))
        shapes.append((dims, WIRE_DTYPES[name], offsets[index], sizes[index]))
        places.append(on_device)
    if not all(value.is_cpu for value in values.values()):
        values = _manifest_reader.decode(manifest, block, only_views=True)
    layout = _Layout(
        tuple(values),
        len(block),
        _engine.Layout(buffers),
        tuple(shapes),
        on_device=any(places),
        is_uniform=len(set(places)) == 1,
    )
    return layout if _gives(layout, block, values) else _UNFIT


def _gives(layout: _Layout, block: _engine.Block, values: dict[str, torch.Tensor]) -> bool:
    """Whether it makes the very tensors that the reader made; a torch of another age may not know a type."""
    try:
        made = layout.tensors(block)
    except Exception:
        return False
    return all(
        (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr())
        == (other.dtype, other.shape, other.stride(), other.data_ptr())
        for tensor, other in zip(made.values(), values.values(), strict=True)
    )


def _remember(known: dict[Any, Any], key: Any, value: Any, size: int) -> None:
    if size <= _MAX_REMEMBERED_BYTES:
        if len(known) >= _MAX_REMEMBERED:
            known.clear()
        known[key] = value
