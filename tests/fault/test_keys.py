"""Keys of a pipeline, and the one place of a link: who comes in, who is refused, and what that changes for others."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from tests.fault import places
from tests.fault.peer import Peer, until
from tests.fault.tap import tapped
from tests.fault.values import assert_whole, numbered
from tests.fault.zmtp import is_dropped, port_of, stranger
from tests.lanes import Lane
from tests.links import ANY_PORT, FAST, pair
from zmqpp import _opening
from zmqpp.communicator import ZeroMQCommunicator
from zmqpp.config import TransportConfig
from zmqpp.errors import ConfigError, ConnectTimeout, PeerLostError
from zmqpp.keys import KeyPair, make_keys, read_keys
from zmqpp.pipeline.ports import free_port
from zmqpp.transport import Link, Route

MIB = 1 << 20
NO_KEY = ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """name -> folder: the pipeline's, another one's, and none."""
    folders = {name: tmp_path_factory.mktemp("keys") / name for name in ("ours", "theirs")}
    for folder in folders.values():
        make_keys(folder)
    return {name: str(folder) for name, folder in folders.items()} | {"none": NO_KEY}


def with_keys(folder: str, config: TransportConfig = FAST) -> TransportConfig:
    return replace(config, curve_dir=folder)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "refused a peer" in record.getMessage()]


# ---- who has the key --------------------------------------------------------------------------------------


def test_with_the_right_key_dicts_and_control_messages_go_as_ever(lane: Lane, keys: dict[str, str]) -> None:
    config = with_keys(keys["ours"], lane.config())
    with pair(bind=lane.address(), sender=config, receiver=config) as (sender, receiver):
        assert sender.stats()["lane"] == receiver.stats()["lane"] == lane.name
        for i, size in enumerate((0, 100, 64 << 10, 3 * MIB, 20 * MIB)):
            sender.send_dict(numbered(i, size))
            sender.send_control(b"%d" % i, route=Route.LINK)
            assert_whole(receiver.recv_dict(), i, size)
            assert receiver.recv_control(5).body == b"%d" % i
        assert sender.stats()["refused"] == 0


def test_the_largest_chunk_fits_with_what_encryption_adds(keys: dict[str, str]) -> None:
    config = replace(with_keys(keys["ours"]), chunk_bytes=16 * MIB, pool_chunks=2, lane="tcp")
    with pair(sender=config, receiver=config) as (sender, receiver):
        sender.send_dict(numbered(1, 40 * MIB))
        assert_whole(receiver.recv_dict(), 1, 40 * MIB)


def test_a_ring_of_ranks_takes_its_keys_from_the_argument_or_the_environment(
    keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZeroMQCommunicator(0, bind=ANY_PORT, curve_dir=Path(keys["ours"])) as first:
        monkeypatch.setenv("ZMQPP_CURVE_DIR", keys["ours"])
        with ZeroMQCommunicator(1, connect=first.bound) as second:
            first.send_tensor_dict(numbered(7, MIB))
            assert_whole(second.recv_tensor_dict() or {}, 7, MIB)
            monkeypatch.setenv("ZMQPP_CURVE_DIR", keys["theirs"])
            with ZeroMQCommunicator(1, connect=first.bound) as other:
                with pytest.raises(ConnectTimeout, match="it has another key, or none"):
                    other.wait_peers(1500)


WRONG = {
    "another key": ("ours", "theirs", "wrong key", "has another key, or none"),
    "no key": ("ours", "none", "it showed no key", "asks for a key, and there is none here"),
    "a key where none is": (
        "none",
        "ours",
        "it has a key, and there is none here",
        "has another key, or none",
    ),
}
"""What the binding side has, what the connecting side, and what each of them says of the other."""


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_key_is_refused_on_both_sides_in_one_line_and_the_right_one_gets_in(
    kind: str, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs, refused_for, trouble = WRONG[kind]
    caplog.set_level(logging.WARNING, "zmqpp")
    config = with_keys(keys[ours])
    with Link(bind=ANY_PORT, connect=None, config=config, name="stage 1") as sender:
        with Link(
            bind=None,
            connect=sender.bound,
            config=with_keys(keys[theirs]),
            name="stage 2",
            previous="stage 1",
        ) as wrong:
            with pytest.raises(ConnectTimeout, match=trouble):
                wrong.wait_peers(1.5)
            said = f"stage 2: stage 1 at {sender.bound} {trouble}: run every stage with the same --pipeline-curve-dir"
            assert [r.getMessage() for r in caplog.records].count(said) == 1
            until(lambda: sender.stats()["refused"] >= 2)
            line = f"stage 1: refused a peer at 127.0.0.1: {refused_for}"
            assert refusals(caplog).count(line) == 1 and len(refusals(caplog)) <= 2
            with Link(bind=None, connect=sender.bound, config=config) as right:
                sender.send_dict(numbered(3, MIB))
                assert_whole(right.recv_dict(), 3, MIB)
                time.sleep(0.2)
                assert wrong.stats()["messages_received"] == 0
        assert len(refusals(caplog)) <= 2


@pytest.mark.parametrize("kind", WRONG)
def test_who_has_a_wrong_key_knocks_ever_more_rarely_and_gets_in_once_it_is_right(
    kind: str, keys: dict[str, str]
) -> None:
    ours, theirs, _, _ = WRONG[kind]
    sender = Link(bind=ANY_PORT, connect=None, config=with_keys(keys[ours]))
    try:
        with Link(bind=None, connect=sender.bound, config=with_keys(keys[theirs])) as knocking:
            until(lambda: sender.stats()["refused"] >= 1)
            time.sleep(2.0)
            before, since = sender.stats()["refused"], time.monotonic()
            time.sleep(3.0)
            knocked, seconds = sender.stats()["refused"] - before, time.monotonic() - since
            assert knocked <= seconds + 2, f"{knocked} times in {seconds:.1f} s"
            address = sender.bound
            sender.close()
            sender = Link(bind=address, connect=None, config=with_keys(keys[theirs]))
            sender.send_dict(numbered(3, MIB))
            assert_whole(knocking.recv_dict(), 3, MIB)
    finally:
        sender.close()


def test_wrong_key_at_a_unix_socket_is_refused_and_its_process_named(
    keys: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "zmqpp")
    with (
        Link(bind=f"ipc://{tmp_path}/l", connect=None, config=with_keys(keys["ours"])) as sender,
        Peer() as peer,
    ):
        peer.open(connect=sender.bound, config=with_keys(keys["theirs"]))
        until(
            lambda: (
                sender.stats()["refused"]
                and f"refused a peer at pid {peer.pid}: wrong key" in refusals(caplog)
            )
        )


def test_who_knows_only_the_public_key_does_not_get_in(keys: dict[str, str]) -> None:
    public = read_keys(keys["ours"]).public
    with Link(bind=ANY_PORT, connect=None, config=with_keys(keys["ours"])) as sender:
        with raw_pull(sender.bound, KeyPair(*own_pair()), server=public) as pull:
            until(lambda: sender.stats()["refused"])
            with Link(bind=None, connect=sender.bound, config=with_keys(keys["ours"])) as right:
                sender.send_dict(numbered(1, MIB))
                assert_whole(right.recv_dict(), 1, MIB)
            assert not pull.poll(0)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_key_file_that_others_may_read_is_refused_before_anything_is_bound(tmp_path: Path, mode: int) -> None:
    path, _ = make_keys(tmp_path / "keys")
    path.chmod(mode)
    port = free_port()
    with pytest.raises(ConfigError, match=f"key file {path}: open to others"):
        Link(bind=port, connect=None, config=with_keys(str(path.parent)))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_binding_for_other_machines_without_keys_warns_once_or_is_refused(
    keys: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_opening, "_warned", False)
    caplog.set_level(logging.WARNING, "zmqpp")
    for address, config in (
        (ANY_PORT, replace(FAST, require_auth=True)),
        ("localhost:0", replace(FAST, require_auth=True)),
        ("*:0", replace(with_keys(keys["ours"]), require_auth=True)),
    ):
        Link(bind=address, connect=None, config=config).close(0)
    assert not caplog.records
    with pytest.raises(
        ConfigError, match=r"tcp://\*:0 is no loopback address, and keys are required.*zmqpp keygen"
    ):
        Link(bind="*:0", connect=None, config=replace(FAST, require_auth=True))
    for _ in range(2):
        Link(bind="*:0", connect=None, config=FAST, name="stage 4").close(0)
    assert ["stage 4: binding tcp://*:0 WITHOUT KEYS" in r.getMessage() for r in caplog.records] == [True]


# ---- the one place ----------------------------------------------------------------------------------------


def own_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


@contextmanager
def raw_pull(where: str | None, pair: KeyPair | None, server: str = "") -> Iterator[zmq.Socket]:
    """A receiver made by hand, which tries again and again."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.linger = 0
        pull.reconnect_ivl = 10
        if pair is not None:
            pull.curve_publickey, pull.curve_secretkey = pair.public.encode(), pair.secret.encode()
            pull.curve_serverkey = (server or pair.public).encode()
        pull.connect(str(where))
        yield pull


@pytest.mark.parametrize("who", ["ours", "none"])
def test_second_receivers_get_nothing_while_every_byte_reaches_the_first(
    lane: Lane, who: str, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "zmqpp")
    config = with_keys(keys[who], lane.config())
    honest = read_keys(keys[who]) if keys[who] else None
    with (
        Link(bind=lane.address(), connect=None, config=config) as sender,
        Peer() as first,
        ExitStack() as crowd,
    ):
        first.open(connect=sender.bound, config=config)
        sender.wait_peers(5)
        pulls = [crowd.enter_context(raw_pull(sender.bound, honest)) for _ in range(3)]
        second = crowd.enter_context(Link(bind=None, connect=sender.bound, config=config))
        numbers, size = range(120), 300_000
        first.order("receive", numbers, size)
        for i in numbers:
            sender.send_dict(numbered(i, size))
            if i % 20 == 0:
                pulls += [crowd.enter_context(raw_pull(sender.bound, honest))]
            time.sleep(0.005)
        first.answer()
        until(lambda: sender.stats()["refused"] >= 2)
        assert not any(pull.poll(0) for pull in pulls)
        assert second.stats()["messages_received"] == 0
        assert sender.next_error() is None and first.stats()["dicts_received"] == len(numbers)
        lines = refusals(caplog)
        assert lines and all(line.endswith("this link has its receiver already") for line in lines)
        assert len(lines) == len(set(lines))


@pytest.mark.parametrize("who", ["ours", "none"])
def test_of_many_that_come_at_once_one_gets_in(who: str, keys: dict[str, str]) -> None:
    config = with_keys(keys[who])
    with Link(bind=ANY_PORT, connect=None, config=config) as sender, ExitStack() as crowd:
        links = [crowd.enter_context(Link(bind=None, connect=sender.bound, config=config)) for _ in range(8)]
        sender.wait_peers(5)
        for i in range(50):
            sender.send_dict({"i": i})
        until(lambda: any(link.stats()["messages_received"] for link in links))
        heard = [link for link in links if link.stats()["messages_received"]]
        assert len(heard) == 1
        assert [heard[0].recv_dict()["i"] for _ in range(50)] == list(range(50))
        assert sum(link.stats()["messages_received"] > 0 for link in links) == 1
        assert sender.next_error() is None


@pytest.mark.parametrize("who", ["ours", "none"])
def test_after_the_first_receiver_was_killed_an_honest_one_gets_in(who: str, keys: dict[str, str]) -> None:
    config = with_keys(keys[who])
    with Link(bind=ANY_PORT, connect=None, config=config) as sender, Peer() as first:
        where = sender.bound
        first.open(connect=where, config=config)
        sender.wait_peers(5)
        first.kill()
        with pytest.raises(PeerLostError):
            until(lambda: sender.send_control(b"x", route=Route.LINK))
    with Link(bind=where, connect=None, config=config) as sender, Peer() as second:
        second.open(connect=where, config=config)
        sender.send_dict(numbered(5, MIB))
        second.receive([5], MIB)


# ---- what was captured ------------------------------------------------------------------------------------


def test_replayed_frames_of_a_session_are_refused_on_both_sides(keys: dict[str, str]) -> None:
    config = with_keys(keys["ours"], replace(FAST, lane="tcp"))
    words = b"what nobody else may read"
    with Link(bind=ANY_PORT, connect=None, config=config) as sender:
        with tapped(sender.bound) as tap, Link(bind=None, connect=tap.where, config=config) as receiver:
            sender.send_dict(numbered(1, MIB))
            sender.send_control(words, route=Route.LINK)
            assert_whole(receiver.recv_dict(), 1, MIB)
            assert receiver.recv_control(5).body == words
            with stranger(sender.bound, bytes(tap.from_connecting)) as while_connected:
                assert is_dropped(while_connected, 5)
            assert sender.next_error() is None
            assert len(tap.from_bound) > MIB and words not in tap.from_bound
        port = port_of(sender.bound)
    with Link(bind=port, connect=None, config=config) as again:
        with stranger(again.bound, bytes(tap.from_connecting)) as replay:
            assert is_dropped(replay, 5)
        until(lambda: again.stats()["refused"])
        assert not again.stats()["send_peer_connected"] and again.stats()["messages_sent"] == 0
    assert_replayed_sender_is_refused(bytes(tap.from_bound), config)


def assert_replayed_sender_is_refused(captured: bytes, config: TransportConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Link(bind=None, connect=f"127.0.0.1:{port}", config=config, previous="stage 0") as receiver:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(5)
                try:
                    connection.sendall(captured)
                except OSError:
                    pass  # it hung up in the middle of it
                assert is_dropped(connection, 5)
            with pytest.raises(ConnectTimeout):
                receiver.wait_peers(0.2)
            assert receiver.stats()["messages_received"] == 0


def test_without_keys_what_is_said_can_be_read(keys: dict[str, str]) -> None:
    """What the test above would not notice were its tap deaf."""
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender, tapped(sender.bound) as tap:
        with Link(bind=None, connect=tap.where, config=FAST) as receiver:
            sender.send_control(b"what anybody may read", route=Route.LINK)
            assert receiver.recv_control(5).body == b"what anybody may read"
            assert b"what anybody may read" in tap.from_bound


# ---- shared memory ----------------------------------------------------------------------------------------


def test_segment_of_another_user_is_not_opened_even_by_root() -> None:
    if not places.can_be_another_user():
        pytest.skip("this machine does not let tests run as another user")
    config = replace(FAST, lane="auto")
    with Peer(places.as_another_user) as other:
        where = other.open(bind=ANY_PORT, config=config)
        with Link(bind=None, connect=where, config=config) as receiver:
            other.send([1], MIB)
            assert_whole(receiver.recv_dict(), 1, MIB)
            assert receiver.stats()["lane"] == "tcp" and "another user's" in receiver.stats()["lane_reason"]


def test_who_was_refused_stays_counted_and_told_when_a_half_is_opened_anew(
    keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "zmqpp")
    with Link(bind=ANY_PORT, connect=None, config=with_keys(keys["ours"])) as sender:
        with Link(bind=None, connect=sender.bound, config=with_keys(keys["theirs"])):
            until(lambda: sender.stats()["refused"] >= 2)
            before = sender.stats()["refused"]
            sender.reopen_send()
            assert sender.stats()["refused"] >= before
            until(lambda: sender.stats()["refused"] >= before + 2)
        assert len(set(refusals(caplog))) == len(refusals(caplog))
