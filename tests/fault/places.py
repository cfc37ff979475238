"""Where a peer may run besides here: as another user, or with another /dev/shm. Called in the peer before it begins."""

from __future__ import annotations

import ctypes
import os
from functools import cache, partial

from tests.fault.peer import Peer

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)


def with_own_shared_memory(size: str) -> None:
    """Give this process a /dev/shm of its own, which holds no more than `size` (as tmpfs has it: "64k")."""
    flags = _CLONE_NEWNS if os.geteuid() == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    _check(_libc.unshare(flags))
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(_libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()))


def without_shared_memory() -> None:
    """Give this process a /dev/shm that it cannot write to, like a read-only container."""
    with_own_shared_memory("64k")
    _check(_libc.mount(b"none", b"/dev/shm", None, 32 | 1, None))  # MS_REMOUNT | MS_RDONLY


def as_another_user() -> None:
    """Go on as nobody; needs root."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


@cache
def can_mount() -> bool:
    """Whether this machine lets a process have a /dev/shm of its own."""
    child = os.fork()
    if child == 0:
        try:
            with_own_shared_memory("64k")
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def can_be_another_user() -> bool:
    return os.geteuid() == 0


def peer_with_shared_memory(size: str) -> Peer:
    return Peer(partial(with_own_shared_memory, size))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
