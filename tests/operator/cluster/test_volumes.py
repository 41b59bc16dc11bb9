"""Mounted volumes change whole."""

import threading
from pathlib import Path

from graft_operator.cluster.volumes import DATA_LINK, project


def test_a_volume_holds_exactly_its_files(tmp_path: Path) -> None:
    assert project(tmp_path, {"a": b"1", "b": b"2"})
    assert not project(tmp_path, {"a": b"1", "b": b"2"})
    assert project(tmp_path, {"b": b"3", "c": b"4"})
    shown = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name[0] != "."}
    assert shown == {"b": b"3", "c": b"4"}
    assert (
        len([path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
    )


def test_a_secrets_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    project(tmp_path, {"token": b"x"}, mode=0o600)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_reader_never_sees_two_versions_at_once(tmp_path: Path) -> None:
    project(tmp_path, {"a": b"0", "b": b"0"})
    torn: list[tuple[bytes, bytes]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            version = (tmp_path / DATA_LINK).resolve()
            try:
                pair = (version / "a").read_bytes(), (version / "b").read_bytes()
            except FileNotFoundError:
                continue
            if pair[0] != pair[1]:
                torn.append(pair)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        text = str(number).encode()
        project(tmp_path, {"a": text, "b": text})
    done.set()
    reader.join()
    assert torn == []
