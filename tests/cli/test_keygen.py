"""`zmqpp keygen`, and key files that are refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.cli.command import assert_mistake, zmqpp
from zmqpp.errors import ConfigError
from zmqpp.keys import FILE_NAME, make_keys, read_keys


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keygen_makes_a_pair_for_its_user_alone_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "keys"
    done = zmqpp("keygen", str(folder))
    assert done.returncode == 0, done.stderr
    assert (_mode(folder), _mode(folder / FILE_NAME)) == (0o700, 0o600)
    pair = read_keys(folder)
    assert pair.public in done.stdout and f"--pipeline-curve-dir {folder}" in done.stdout
    assert f"ZMQPP_CURVE_DIR={folder}" in done.stdout and "copy" in done.stdout
    assert pair.secret not in done.stdout + done.stderr + repr(pair)
    assert os.listdir(folder) == [FILE_NAME]


def test_keygen_json_is_json_alone(tmp_path: Path) -> None:
    done = zmqpp("keygen", str(tmp_path / "keys"), "--json")
    made = json.loads(done.stdout)
    assert made == {"file": str(tmp_path / "keys" / FILE_NAME), "public": read_keys(tmp_path / "keys").public}
    assert done.stderr == ""


def test_a_mask_that_is_wide_open_does_not_widen_the_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path, _ = make_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert (_mode(path.parent), _mode(path)) == (0o700, 0o600)


def test_keygen_never_replaces_a_key(tmp_path: Path) -> None:
    path, pair = make_keys(tmp_path / "keys")
    assert_mistake(zmqpp("keygen", str(path.parent)), f"{path} is there already")
    assert read_keys(path.parent) == pair
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is there already"):
        make_keys(path.parent)
    assert os.listdir(path.parent) == [FILE_NAME] and not (tmp_path / "elsewhere").exists()


def test_keygen_refuses_a_folder_that_is_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    assert_mistake(zmqpp("keygen", str(tmp_path / "open")), "open to others (mode 0755)")
    (tmp_path / "file").touch()
    assert_mistake(zmqpp("keygen", str(tmp_path / "file")), "there is a file of that name")
    assert os.listdir(tmp_path / "open") == []


def test_two_pairs_are_never_the_same(tmp_path: Path) -> None:
    pairs = {make_keys(tmp_path / str(i))[1].public for i in range(8)}
    assert len(pairs) == 8


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path, _ = make_keys(tmp_path / "keys")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"open to others \(mode {mode:04o}\); chmod 600 {path}"):
        read_keys(path.parent)


def test_a_key_that_others_may_replace_is_refused(tmp_path: Path) -> None:
    path, pair = make_keys(tmp_path / "keys")
    path.parent.chmod(0o770)
    with pytest.raises(ConfigError, match=rf"others may write to its folder .*chmod 700 {path.parent}"):
        read_keys(path.parent)
    # As the folder of a Kubernetes secret: nobody may replace another's file in there.
    path.parent.chmod(0o1777)
    assert read_keys(path.parent) == pair


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path, _ = make_keys(tmp_path / "keys")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        read_keys(path.parent)


BROKEN = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "another version": lambda text: text.replace("key 1", "key 2"),
    "a key too short": lambda text: text[:-2] + "\n",
    "a line too many": lambda text: text + "more\n",
    "large": lambda text: text + "x" * (1 << 20),
    "no text": lambda text: "\0" * 200,
    "a letter that Z85 has not": lambda text: text[:-3] + "~\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_key_file_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    path, _ = make_keys(tmp_path / "keys")
    path.write_text(BROKEN[kind](path.read_text()))
    with pytest.raises(ConfigError, match="not a key file of this version") as refused:
        read_keys(path.parent)
    assert "\n" not in str(refused.value)


def test_keys_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path, pair = make_keys(tmp_path / "keys")
    _, other = make_keys(tmp_path / "other")
    whole = path.read_text()
    # The last ones are made of Z85's letters, and stand for no number of 32 bits.
    for text in (whole.replace(pair.public, other.public), whole.replace(pair.secret, "#" * 40)):
        path.write_text(text)
        with pytest.raises(ConfigError, match="do not belong together"):
            read_keys(path.parent)


def test_a_key_that_is_missing_or_no_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file.*zmqpp keygen"):
        read_keys(tmp_path)
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        read_keys(tmp_path)
    (tmp_path / FILE_NAME).rmdir()
    os.mkfifo(tmp_path / FILE_NAME, 0o600)  # must not wait for a writer
    with pytest.raises(ConfigError, match="is no file"):
        read_keys(tmp_path)
