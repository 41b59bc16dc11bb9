import os
import socket
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import SourceFile
from graft_runtime.sources.files import FileSource


async def read(source: FileSource, file: SourceFile) -> bytes:
    return b"".join([chunk async for chunk in source.read(file)])


async def reason_of_listing(folder: Path) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        await FileSource(folder).list_files()
    return caught.value.reason


async def test_the_folders_files_are_listed_and_read(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"B" * 3_000_000)
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c").write_bytes(b"C")
    source = FileSource(tmp_path)
    files = await source.list_files()
    assert [(file.name, file.size) for file in files] == [("a", 0), ("b", 3_000_000)]
    assert [await read(source, file) for file in files] == [b"", b"B" * 3_000_000]


async def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert await reason_of_listing(tmp_path / "nowhere") is Reason.SOURCE_NOT_FOUND


async def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert await reason_of_listing(tmp_path / "file") is Reason.UNSAFE_PATH


async def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    assert await reason_of_listing(tmp_path / "link") is Reason.UNSAFE_PATH


async def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").symlink_to("/etc/passwd")
    assert await reason_of_listing(tmp_path) is Reason.UNSAFE_PATH


async def test_a_pipe_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    assert await reason_of_listing(tmp_path) is Reason.UNSAFE_PATH
    with pytest.raises(ReasonedError) as caught:
        await read(FileSource(tmp_path), SourceFile("adapter_model.safetensors", 1, None))
    assert caught.value.reason is Reason.UNSAFE_PATH


async def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ReasonedError) as caught:
            await read(FileSource(tmp_path), SourceFile("s", 1, None))
    assert caught.value.reason is Reason.UNSAFE_PATH


async def test_a_file_that_becomes_a_link_after_the_listing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text("{}")
    source = FileSource(tmp_path)
    (listed,) = await source.list_files()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ReasonedError) as caught:
        await read(source, listed)
    assert caught.value.reason is Reason.UNSAFE_PATH


async def test_a_file_that_changes_after_the_listing_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text("{}")
    source = FileSource(tmp_path)
    (listed,) = await source.list_files()
    path.write_text("[]")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ReasonedError) as caught:
        await read(source, listed)
    assert caught.value.reason is Reason.SOURCE_CHANGED


async def test_a_file_that_changes_while_being_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 5_000_000)
    source = FileSource(tmp_path)
    (listed,) = await source.list_files()
    stream = source.read(listed)
    assert await anext(stream)
    os.truncate(path, 10)
    with pytest.raises(ReasonedError) as caught:
        await anext(stream)
    assert caught.value.reason is Reason.SOURCE_CHANGED
    await stream.aclose()
