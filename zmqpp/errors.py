"""Every exception zmqpp raises on purpose.

    ZmqppError                      op, code; the text says what, where, how much, what to do
    ├── ConfigError(ValueError)     a setting or an argument; raised before any I/O
    │   ├── LayerRangeError         layers that do not fit the model or one another
    │   └── UnsupportedError(TypeError)   a value, option or version zmqpp does not handle
    ├── TransportError              the link between two places
    │   ├── ConnectError            an address cannot be bound or reached, or the wrong peer answers
    │   ├── PeerLostError           the other side closed or died
    │   ├── ClosedError             this side closed
    │   └── DeadlineError(TimeoutError)
    │       ├── ConnectTimeout      nobody came
    │       ├── SendTimeout         the receiver did not take it
    │       │   └── PoolTimeout     there was no room for it: the queue, the pool or the segment stayed full
    │       └── RecvTimeout         nothing arrived
    ├── ProtocolError               wrong bytes
    │   ├── MalformedError          not the wire format, or beyond its limits
    │   │   └── ChecksumError       bytes changed on their way
    │   ├── VersionError            another wire version
    │   ├── TensorMismatchError     not the tensors that were announced
    │   ├── SequenceError           lost, repeated or reordered messages
    │   └── AuthError               a peer without the right key
    ├── ResourceError               this machine
    │   ├── SharedMemoryError
    │   ├── DeviceError             code = the driver's
    │   └── PinnedMemoryError
    └── StageError                  another process of the pipeline
        ├── RemoteError             it failed there; the text carries its reason
        └── LaunchError             it did not start

Errors of the C++ engine become these in one place, csrc/bind/errors.cc.
"""

from __future__ import annotations


class ZmqppError(Exception):
    """Base of all; `op` names the operation, `code` the engine's reason (both may be empty)."""

    def __init__(self, message: str = "", *, op: str = "", code: str = "") -> None:
        super().__init__(message)
        self.op = op
        self.code = code


class ConfigError(ZmqppError, ValueError):
    """A setting or an argument is wrong; nothing was sent or opened."""


class LayerRangeError(ConfigError):
    """Layer ranges do not fit the model or one another."""


class UnsupportedError(ConfigError, TypeError):
    """A value, option or version that zmqpp does not handle."""


class TransportError(ZmqppError):
    """The link between two places failed."""


class ConnectError(TransportError):
    """An address cannot be bound or reached, or the wrong peer answers there."""


class PeerLostError(TransportError):
    """The other side closed the link or died."""


class ClosedError(TransportError):
    """This side closed the link."""


class DeadlineError(TransportError, TimeoutError):
    """A deadline passed."""


class ConnectTimeout(DeadlineError):
    """Nobody came before the deadline."""


class SendTimeout(DeadlineError):
    """The receiver did not take it before the deadline."""


class RecvTimeout(DeadlineError):
    """Nothing arrived before the deadline."""


class PoolTimeout(SendTimeout):
    """The queue, the staging pool or the shared segment stayed full; the text says with what, and who holds it."""


class ProtocolError(ZmqppError):
    """The peer sent wrong bytes."""


class MalformedError(ProtocolError):
    """Bytes that are not the wire format, or sizes beyond its limits."""


class ChecksumError(MalformedError):
    """A message's bytes changed on their way; only noticed where `TransportConfig.checksum` is on."""


class VersionError(ProtocolError):
    """The peer speaks another wire version."""


class TensorMismatchError(ProtocolError):
    """Not the tensors that were announced or asked for."""


class SequenceError(ProtocolError):
    """Messages were lost, repeated, reordered, or belong to another session."""


class AuthError(ProtocolError):
    """The peer has no key, or the wrong one."""


class ResourceError(ZmqppError):
    """This machine has no more of something."""


class SharedMemoryError(ResourceError):
    """A shared segment cannot be made or opened."""


class DeviceError(ResourceError):
    """The accelerator's driver reported an error; `code` is its own."""


class PinnedMemoryError(ResourceError):
    """Memory cannot be page-locked."""


class StageError(ZmqppError):
    """Another process of the pipeline failed."""


class RemoteError(StageError):
    """It failed in another process; the text carries the reason given there."""


class LaunchError(StageError):
    """A stage's process did not start, or ended early."""
