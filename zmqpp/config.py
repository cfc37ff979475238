"""Settings of the transport, with their defaults, limits and environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from zmqpp.errors import ConfigError

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# name -> (smallest, largest). Upper ends repeat csrc/wire/constants.h; a test compares them.
_LIMITS: dict[str, tuple[float, float]] = {
    "chunk_bytes": (64, 16 * _MIB),
    "inline_bytes": (0, 1 * _MIB),
    "pool_chunks": (2, 65536),
    "queue_bytes": (64 * _KIB, 1 << 50),
    "queue_items": (1, 1 << 20),
    "receive_limit_bytes": (1, 1 << 50),
    "max_dict_bytes": (1, 1 << 40),
    "max_control_bytes": (1, 1 << 30),
    "heartbeat_s": (0, 3600),
    "peer_timeout_s": (0, 86400),
    "handshake_s": (0.1, 3600),
    "timeout_s": (0.001, 1e9),
    "linger_s": (0, 3600),
    "shm_bytes": (1 * _MIB, 1 << 40),
    "shm_hold_bytes": (0, 1 << 40),
    "spin_us": (0, 100_000),
    "pinned_bytes": (1 * _MIB, 1 << 40),
    "pinned_pool_bytes": (0, 1 << 40),
    "device_ring_bytes": (2 * _MIB, 1 << 40),  # smaller ones would lie in memory that CUDA shares out
}
LANES = ("auto", "tcp", "shm", "cuda_ipc")
"""Ways payload can move in this release."""
COMPRESSIONS = ("none", "fp8", "int8")
"""What a sender makes of large tensors of floats."""


@dataclass(frozen=True)
class TransportConfig:
    """How a link uses memory and time. Both sides may differ, but limits must cover what the peer sends.

    Each field can be set by the environment: `chunk_bytes` by `ZMQPP_CHUNK_BYTES`, and so on; see `from_env`.
    """

    chunk_bytes: int = 512 * _KIB
    """Size of one piece of a large payload: small enough to overlap copying and sending."""
    inline_bytes: int = 64 * _KIB
    """Payloads up to this size travel in the dict's own message, copied before the send returns."""
    pool_chunks: int = 16
    """Staging chunks of a sender: `pool_chunks * chunk_bytes` of memory, touched when first used."""
    queue_bytes: int = 256 * _MIB
    """What may wait to be sent; beyond, the caller waits. One message always fits."""
    queue_items: int = 1024
    """Messages that may wait to be sent."""
    receive_limit_bytes: int = 256 * _MIB
    """What may be received and not taken yet; beyond, the socket is not read, which stops the sender."""
    max_dict_bytes: int = 4 * _GIB
    """Largest payload of one dict that is sent or accepted."""
    max_control_bytes: int = 256 * _MIB
    """Largest control message that is sent or accepted: a step brings the pictures of its new requests."""
    heartbeat_s: float = 1.0
    """An idle sender shows a sign of life this often; 0 = never."""
    peer_timeout_s: float = 5.0
    """Silence after which a receiver gives its sender up; 0 = never. Several of the peer's heartbeats."""
    handshake_s: float = 10.0
    """A connection that has not completed ZeroMQ's handshake by then is dropped."""
    timeout_s: float = 300.0
    """Deadline of operations that are given none."""
    linger_s: float = 5.0
    """How long `close()` goes on sending what is queued, if the peer is there."""
    lane: str = "auto"
    """How payload moves: "shm", through a shared memory segment, fails where the peer cannot open it; "cuda_ipc", as
    shm, and CUDA tensors from device to device, fails where the peer cannot open this one's device memory; "tcp",
    through the socket; "auto", the fastest of them that the peer can do."""
    shm_bytes: int = 640 * _MIB
    """Largest size of the shared segment's payload area; memory is committed as it is needed."""
    shm_hold_bytes: int = 0
    """What received tensors may keep of the segment; beyond, dicts are copied out of it. 0 = half of `shm_bytes`."""
    spin_us: int = 250
    """A waiter polls at most this long before it sleeps; it adapts downwards; 0 = never."""
    pinned_bytes: int = 256 * _MIB
    """Of links with CUDA devices: what of the segment, and at a receiver of the memory for dicts that do not lie in
    it, is pinned when the link opens, each, for devices to read and write by themselves. Dicts that do not fit are
    copied in as CUDA stages them, while the receiver waits."""
    pinned_pool_bytes: int = 64 * _MIB
    """Of links with CUDA devices that send through a socket: staging memory in place of `pool_chunks`, where that is
    less. It is locked when the link opens, and stays locked. CUDA tensors of a dict that fits
    leave their device without the caller; of a larger one, or behind others that fill it, `wait()` waits for the
    network. Where the system refuses to lock it, opening fails with PinnedMemoryError: make it smaller."""
    device_ring_bytes: int = 128 * _MIB
    """Of device memory that a sender of CUDA tensors keeps for a receiver that copies from it. What does not fit goes
    through the segment."""
    checksum: bool = False
    """Send a crc32c of every message's body along, and check those that come. CUDA tensors go through the host then."""
    compression: str = "none"
    """Of what is sent: "fp8" or "int8" pack float tensors of at least 2 dimensions and 4 KiB into a byte a value and a
    scale for each 128. What is received then is close, not equal. A receiver needs no setting for it."""
    curve_dir: str = ""
    """Folder of the pipeline's keys, made by `zmqpp keygen`: links are encrypted, and let in only who has them too."""
    require_auth: bool = False
    """Bind nothing but loopback addresses and Unix sockets without keys."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name, (smallest, largest) in _LIMITS.items():
            value = getattr(self, name)
            wanted = int if types[name] is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise ConfigError(f"{name} must be a number, not {value!r}")
            if not smallest <= value <= largest:
                raise ConfigError(f"{name}={value} must lie within {smallest:g}..{largest:g}")
        if not isinstance(self.lane, str) or self.lane not in LANES:
            raise ConfigError(f"lane={self.lane!r} must be one of {', '.join(LANES)}")
        if not isinstance(self.compression, str) or self.compression not in COMPRESSIONS:
            raise ConfigError(f"compression={self.compression!r} must be one of {', '.join(COMPRESSIONS)}")
        for name in ("checksum", "require_auth"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.checksum and self.lane == "cuda_ipc":
            raise ConfigError(
                "checksum=True needs payload that the host can read, lane='cuda_ipc' keeps it on devices"
            )
        if not isinstance(self.curve_dir, str):
            raise ConfigError(f"curve_dir must be the path of a folder, not {self.curve_dir!r}")
        if self.chunk_bytes % 64:
            raise ConfigError(f"chunk_bytes={self.chunk_bytes} must be a multiple of 64")
        if 0 < self.peer_timeout_s <= self.heartbeat_s:
            raise ConfigError(
                f"peer_timeout_s={self.peer_timeout_s} must be longer than heartbeat_s={self.heartbeat_s}, "
                "or every idle link is given up"
            )

    @classmethod
    def from_env(cls) -> TransportConfig:
        """The defaults, with those replaced that `ZMQPP_<FIELD>` sets.

        Raises:
            ConfigError: a variable is not a number, not a yes or no, or out of its range.
        """
        types = get_type_hints(cls)
        given: dict[str, Any] = {}
        for field in fields(cls):
            variable = f"ZMQPP_{field.name.upper()}"
            text = os.environ.get(variable, "").strip()
            if text:
                given[field.name] = _parse(variable, text, types[field.name])
        return cls(**given)


def _parse(variable: str, text: str, wanted: type) -> int | float | str | bool:
    if wanted is str:
        return text
    if wanted is bool:
        if text.lower() not in _SWITCH:
            raise ConfigError(f"{variable}={text!r} must be one of {', '.join(_SWITCH)}")
        return _SWITCH[text.lower()]
    try:
        return int(text) if wanted is int else float(text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is not a number") from None


_SWITCH = {
    "1": True,
    "0": False,
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "on": True,
    "off": False,
}
