"""The two neighbours of the stage under test, spoken by hand: ZMTP 3.1 and the wire format, right or wrong."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable

import zmq

from tests.fault.raw import BEAT, CONTROL, HELLO
from tests.fault.zmtp import GREETING, long_frame_header, ready
from zmqpp import _engine, control
from zmqpp.errors import ZmqppError
from zmqpp.transport import Route

_SESSION_AT, _SEQUENCE_AT, _EPOCH_AT, _SIZE_AT = 16, 24, 12, 56  # docs/wire_format.md
_HEAD = _engine.HEAD_SIZE


class Broken(Exception):
    """The stage hung up."""


class Previous:
    """The place that the stage connects to. One connection at a time; each is a new session.

    Messages are queued by `say` and go out together with `flush`.
    """

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self._connection: socket.socket | None = None
        self._queue: list[bytes] = []
        self.session, self.sequence = 1, 0
        self.epoch = 0

    def close(self) -> None:
        self.hang_up()
        self._server.close()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._queue = None, []

    def greet(self, timeout_s: float, opening: bytes = b"") -> None:
        """Wait for the stage to connect, shake hands, and begin a session. `opening` comes in place of all that.

        Raises:
            TimeoutError: nobody connected. Broken: it hung up at once.
        """
        self.hang_up()
        self._server.settimeout(timeout_s)
        self._connection, _ = self._server.accept()
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.settimeout(timeout_s)
        try:
            self._connection.sendall(opening or GREETING + ready(b"PUSH"))
            if opening:
                return
            heard = b""
            while len(heard) < len(GREETING) + 2:
                got = self._connection.recv(4096)
                if not got:
                    raise Broken("during the handshake")
                heard += got
        except OSError as error:
            raise Broken(str(error)) from None
        self.session, self.sequence = self.session + 1, 0
        self.message(HELLO, _engine.write_hello(-1, 0, "stage 0"))
        self.flush()

    # ---- messages ------------------------------------------------------------------------------------------

    def message(self, kind: int, body: bytes = b"", **fields: int) -> None:
        """Queue a message that is right but for what `fields` replace."""
        right = {
            "session": self.session,
            "sequence": self.sequence,
            "epoch": self.epoch,
            "body_size": len(body),
        }
        self.frame(_engine.write_head(kind, **{**right, **fields}) + body)
        self.sequence += 1

    def say(self, message: control.AnyMessage | bytes, route: Route = Route.REQUEST, **fields: int) -> None:
        """Queue a control message."""
        body = message if isinstance(message, bytes) else control.encode(message)
        self.message(CONTROL, body, route=int(route), **fields)

    def again(self, message: bytes, epoch: int | None = None) -> None:
        """Queue a message that was heard elsewhere, or made of one, as a part of this session."""
        self.frame(self.mended(message, epoch))
        self.sequence += 1

    def mended(self, message: bytes, epoch: int | None = None) -> bytes:
        """As `again` says it: its session, sequence, epoch and size put right."""
        mended = bytearray(message.ljust(_HEAD, b"\0"))
        struct.pack_into("<Q", mended, _SESSION_AT, self.session)
        struct.pack_into("<Q", mended, _SEQUENCE_AT, self.sequence)
        struct.pack_into("<I", mended, _EPOCH_AT, self.epoch if epoch is None else epoch)
        struct.pack_into("<I", mended, _SIZE_AT, len(mended) - _HEAD)
        return bytes(mended)

    def frame(self, content: bytes) -> None:
        """Queue a ZeroMQ message of one frame."""
        self.raw(long_frame_header(len(content)) + content)

    def raw(self, content: bytes) -> None:
        """Queue bytes of the connection."""
        self._queue.append(content)

    def beat(self) -> None:
        self.message(BEAT)

    def flush(self) -> None:
        """Raises Broken."""
        content, self._queue = b"".join(self._queue), []
        try:
            if self._connection is None or self.is_broken():
                raise Broken("before it was told")
            self._connection.sendall(content)
        except OSError as error:
            raise Broken(str(error)) from None

    def is_broken(self) -> bool:
        """Whether the stage has hung up; a PULL says nothing else that matters."""
        if self._connection is None:
            return True
        try:
            while select.select([self._connection], [], [], 0)[0]:
                if not self._connection.recv(4096):
                    return True
        except OSError:
            return True
        return False


class Next:
    """The place that takes what the stage says: replies are counted, and the latest can be waited for."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.greeted: control.HelloReply | None = None
        self.answered: dict[int, bool] = {}
        """Call -> whether it went well."""
        self.counted: Counter[str] = Counter()
        self.open()

    def open(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._listen, name="next")
        self._thread.start()

    def pause(self) -> None:
        """Leave, so that another may come."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.pause()
        self._context.destroy(linger=0)

    def wait(self, there: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(there, timeout_s)

    def _listen(self) -> None:
        with self._context.socket(zmq.PULL) as connection:
            connection.reconnect_ivl, connection.reconnect_ivl_max = 20, 100
            connection.connect(self._address)
            while not self._stop.is_set():
                if connection.poll(20):
                    frame = connection.recv()
                    with self._changed:
                        self._take(frame)
                        self._changed.notify_all()

    def _take(self, frame: bytes) -> None:
        try:
            if _engine.read_head(frame)["kind"] != CONTROL:
                return
            message = control.decode(frame[_HEAD:])
        except ZmqppError:
            self.counted["passed on unread"] += 1
            return
        if isinstance(message, control.HelloReply):
            self.greeted = message
        elif isinstance(message, control.RpcReply) and message.stage == 1:
            self.answered[message.call] = message.error is None
            self.counted["calls answered" if message.error is None else "calls refused"] += 1
        elif isinstance(message, control.StepReply):
            self.counted["steps run"] += 1
