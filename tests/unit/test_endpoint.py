from __future__ import annotations

from pathlib import Path

import pytest

from zmqpp.endpoint import Endpoint, bind_endpoint, check_resolvable, connect_endpoint
from zmqpp.errors import ConfigError, ConnectError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (15550, "tcp://127.0.0.1:15550"),
        ("15550", "tcp://127.0.0.1:15550"),
        ("0", "tcp://127.0.0.1:0"),
        ("10.0.0.7:15550", "tcp://10.0.0.7:15550"),
        ("tcp://*:1", "tcp://*:1"),
        ("[::1]:80", "tcp://[::1]:80"),
        ("tcp://[fe80::1%eth0]:80", "tcp://[fe80::1%eth0]:80"),
        ("stage-1.pipeline.svc.cluster.local:15550", "tcp://stage-1.pipeline.svc.cluster.local:15550"),
        (" localhost:65535 ", "tcp://localhost:65535"),
    ],
)
def test_bind_accepts(text: str | int, meant: str) -> None:
    assert str(bind_endpoint(text)) == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "HOST:PORT"),
        ("host", "HOST:PORT"),
        (":15550", "HOST:PORT"),
        ("host:", "no port number"),
        ("host:x", "no port number"),
        ("host:-1", "no port number"),
        ("host:１２", "no port number"),
        ("host:65536", "0..65535"),
        ("::1:80", "brackets"),
        ("[::zz]:80", "no IPv6 address"),
        ("ho st:80", "no host name"),
        ("-x:80", "no host name"),
        ("udp://host:80", "only tcp:// and ipc://"),
        ("ipc://relative", "ipc:///absolute/path"),
        ("ipc:///no/such/folder/x", "no folder"),
        ("ipc:///tmp", "'/tmp' is a directory; name a file in it"),
        ("ipc:///tmp/", "is a directory"),
        ("ipc:///" + "x" * 120, "at most 107"),
    ],
)
def test_bind_refuses_saying_why(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        bind_endpoint(text)


@pytest.mark.parametrize("text", ["host:0", "15550", "*:80"])
def test_connect_refuses_what_names_nobody(text: str) -> None:
    with pytest.raises(ConfigError):
        connect_endpoint(text)


def test_ipc_path_of_107_bytes_is_accepted(tmp_path: Path) -> None:
    name = "x" * (107 - len(str(tmp_path)) - 1)
    assert bind_endpoint(f"ipc://{tmp_path}/{name}").scheme == "ipc"


def test_unresolvable_host_is_named() -> None:
    with pytest.raises(ConnectError, match=r"no-such-host\.invalid"):
        check_resolvable(Endpoint("tcp", "no-such-host.invalid", 80))
    check_resolvable(Endpoint("tcp", "127.0.0.1", 80))
    check_resolvable(Endpoint("tcp", "*", 80))
