"""A folder of manifests: read when it changes, and never half."""

from pathlib import Path

import pytest

from graft_operator.cluster.manifests import ManifestFolder, Scan


@pytest.fixture
def folder(tmp_path: Path) -> ManifestFolder:
    (tmp_path / "a.yaml").write_text("n: 1\n---\nn: 2\n")
    (tmp_path / "notes.txt").write_text("n: 99\n")
    (tmp_path / ".hidden.yaml").write_text("n: 98\n")
    return ManifestFolder(tmp_path)


def numbers(scan: Scan | None) -> list[int]:
    assert scan is not None
    return [document.content["n"] for document in scan.documents]


def scan_twice(folder: ManifestFolder) -> Scan | None:
    first = folder.scan()
    return folder.scan() or first


def test_the_first_look_reads_every_manifest_and_nothing_else(folder: ManifestFolder) -> None:
    assert numbers(folder.scan()) == [1, 2]
    assert folder.scan() is None


def test_a_changed_file_is_read_once_it_rests(folder: ManifestFolder) -> None:
    folder.scan()
    path = folder.folder / "a.yaml"
    path.write_text("n: 3\n")
    assert folder.scan() is None
    path.write_text("n: 3\n---\nn: 44\n")
    assert folder.scan() is None
    assert numbers(folder.scan()) == [3, 44]


def test_new_and_removed_files_are_noticed(folder: ManifestFolder) -> None:
    folder.scan()
    (folder.folder / "b.yml").write_text("n: 5\n")
    assert numbers(scan_twice(folder)) == [1, 2, 5]
    (folder.folder / "a.yaml").unlink()
    assert numbers(scan_twice(folder)) == [5]


def test_a_file_that_is_replaced_in_one_step_is_never_seen_missing(folder: ManifestFolder) -> None:
    folder.scan()
    for number in range(3, 6):
        draft = folder.folder / "draft"
        draft.write_text(f"n: {number}\n")
        draft.replace(folder.folder / "a.yaml")
        assert numbers(scan_twice(folder)) == [number]


def test_a_file_that_is_no_yaml_keeps_its_last_good_content_and_says_where(
    folder: ManifestFolder,
) -> None:
    folder.scan()
    (folder.folder / "a.yaml").write_text("n: 1\nn2: [unclosed\n")
    scan = scan_twice(folder)
    assert numbers(scan) == [1, 2]
    assert scan is not None
    (problem,) = scan.problems
    assert problem.where.startswith("a.yaml:")
    assert "not YAML" in problem.message
    (folder.folder / "a.yaml").write_text("n: 7\n")
    mended = scan_twice(folder)
    assert numbers(mended) == [7]
    assert mended is not None
    assert mended.problems == ()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00n: 1", b"n: &a [*a]\n" * 1, b"? {a: b}\n: 1\n- x"]
)
def test_strange_bytes_are_a_problem_and_not_a_crash(
    folder: ManifestFolder, content: bytes
) -> None:
    folder.scan()
    (folder.folder / "b.yaml").write_bytes(content)
    assert scan_twice(folder) is not None


def test_a_vanished_folder_keeps_everything(folder: ManifestFolder, tmp_path: Path) -> None:
    folder.scan()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    scan = scan_twice(folder)
    assert numbers(scan) == [1, 2]
    assert scan is not None
    assert scan.problems
    moved.rename(tmp_path)
    back = scan_twice(folder)
    assert back is not None
    assert back.problems == ()
