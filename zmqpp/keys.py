"""A pipeline's CURVE key pair as a file: made, read, and checked before anything is bound.

One pair a pipeline: every stage is server on the socket it binds and client on the one it connects, with the same pair,
and lets in whoever proves to have it. The file is text, so that it can be looked at:

    zmqpp-pipeline-key 1
    public 40 characters of Z85
    secret 40 characters of Z85
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from zmqpp.errors import ConfigError

__all__ = ["FILE_NAME", "KeyPair", "make_keys", "read_keys"]

FILE_NAME = "pipeline.key"
_VERSION_LINE = "zmqpp-pipeline-key 1"
_MOST_BYTES = 4096
_KEY = r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"  # Z85: https://rfc.zeromq.org/spec/32/
_LAYOUT = re.compile(rf"{_VERSION_LINE}\npublic ({_KEY})\nsecret ({_KEY})\n?")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class KeyPair:
    """Both keys in Z85, 40 characters each; the secret one shows in no repr."""

    public: str
    secret: str = field(repr=False)


def make_keys(folder: str | Path) -> tuple[Path, KeyPair]:
    """Write a new pair to `folder`/pipeline.key, whole or not at all; returns the file and the pair.

    Args:
        folder: made, for its owner alone, if it is not there.
    Raises:
        ConfigError: there is a key already, `folder` is open to others, or this libzmq has no CURVE.
        OSError: it cannot be written.
    """
    where = Path(folder).expanduser()
    where.parent.mkdir(parents=True, exist_ok=True)
    try:
        where.mkdir(mode=0o700)
    except FileExistsError:
        _check_own_folder(where)
    path = where / FILE_NAME
    if os.path.lexists(path):
        raise _there_already(path)
    pair = _new_pair()
    text = f"{_VERSION_LINE}\npublic {pair.public}\nsecret {pair.secret}\n"
    growing = where / f".{FILE_NAME}.{secrets.token_hex(8)}"
    try:
        _write(growing, text)
        os.link(growing, path)  # which fails where a rename would replace
    except FileExistsError:
        raise _there_already(path) from None
    finally:
        growing.unlink(missing_ok=True)
    return path, pair


def read_keys(folder: str | Path) -> KeyPair:
    """The pair in `folder`.

    Raises:
        ConfigError: it is missing, malformed, or not its owner's alone; one line, with what to do.
    """
    path = Path(folder).expanduser() / FILE_NAME
    text = _read(path)
    found = _LAYOUT.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"key file {path}: not a key file of this version; it begins with {_VERSION_LINE!r}: copy it again from "
            "where `zmqpp keygen` made it"
        )
    pair = KeyPair(found[1], found[2])
    if not _belong_together(pair):
        raise ConfigError(
            f"key file {path}: its two keys do not belong together: copy it again from where `zmqpp keygen` made it"
        )
    return pair


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"key file {path}: {error.strerror}; `zmqpp keygen DIR` makes one, copy its folder to every machine"
        ) from None
    try:
        _check_guarded(path, os.fstat(fd))
        return os.read(fd, _MOST_BYTES).decode("ascii", errors="replace")
    finally:
        os.close(fd)


def _check_guarded(path: Path, found: os.stat_result) -> None:
    """Nobody else may read the file, nor put another one in its place."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"key file {path}: is no file")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"key file {path}: belongs to user {found.st_uid}, who knows it; make a new one: zmqpp keygen DIR"
        )
    if found.st_mode & _OTHERS:
        raise ConfigError(
            f"key file {path}: open to others (mode {stat.S_IMODE(found.st_mode):04o}); chmod 600 {path}, "
            "and make new keys if others may have read them"
        )
    folder = path.parent.stat()
    if folder.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"key file {path}: its folder belongs to user {folder.st_uid}, who may put another file in its place; "
            "copy it into a folder of your own"
        )
    if folder.st_mode & _OTHERS_WRITE and not folder.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"key file {path}: others may write to its folder (mode {stat.S_IMODE(folder.st_mode):04o}); "
            f"chmod 700 {path.parent}"
        )


def _check_own_folder(where: Path) -> None:
    if not where.is_dir():
        raise ConfigError(f"{where}: there is a file of that name; give a folder")
    mode = where.stat().st_mode
    if mode & _OTHERS:
        raise ConfigError(
            f"{where}: the folder is open to others (mode {stat.S_IMODE(mode):04o}); give a new one, "
            f"or chmod 700 {where}"
        )


def _there_already(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is there already, and stages may be using it; for new keys give another folder, or remove it"
    )


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def _new_pair() -> KeyPair:
    import zmq

    if not zmq.has("curve"):
        raise ConfigError("the libzmq of this pyzmq has no CURVE: reinstall pyzmq from its wheel")
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def _belong_together(pair: KeyPair) -> bool:
    import zmq
    from zmq.error import ZMQError

    if not zmq.has("curve"):
        raise ConfigError("the libzmq of this pyzmq has no CURVE: reinstall pyzmq from its wheel")
    try:
        public: bytes = zmq.curve_public(pair.secret.encode("ascii"))
    except ZMQError:
        return False  # these are letters of Z85, but no number of 32 bits
    return public.decode("ascii") == pair.public
