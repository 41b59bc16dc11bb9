"""``pvc://``: folders below a mounted volume claim."""

from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    folder = tmp_path / "claims/claim/t/a1"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"one")
    return tmp_path / "claims"


async def reason_of_listing(uri: str, claims: Path | None) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        await open_source(uri, None, SourcePolicy(claims_dir=claims)).list_files()
    return caught.value.reason


async def test_a_folder_of_a_claim_is_listed_and_read(claims: Path) -> None:
    source = open_source("pvc://claim/t/a1", None, SourcePolicy(claims_dir=claims))
    (file,) = await source.list_files()
    assert file[:2] == ("x", 3)
    assert b"".join([chunk async for chunk in source.read(file)]) == b"one"
    assert b"".join([chunk async for chunk in source.read(file, 1, 1)]) == b"n"


async def test_a_whole_claim_can_be_a_source(claims: Path) -> None:
    (claims / "claim/y").write_bytes(b"2")
    source = open_source("pvc://claim", None, SourcePolicy(claims_dir=claims))
    assert [file.name for file in await source.list_files()] == ["y"]


async def test_a_claims_own_name_may_be_a_link(claims: Path) -> None:
    (claims / "other").symlink_to(claims / "claim")
    source = open_source("pvc://other/t/a1", None, SourcePolicy(claims_dir=claims))
    assert [file.name for file in await source.list_files()] == ["x"]


async def test_no_part_of_the_way_may_be_a_link(claims: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside/a1"
    outside.mkdir(parents=True)
    (outside / "x").write_bytes(b"secret")
    (claims / "claim/way").symlink_to(tmp_path / "outside")
    (claims / "claim/end").symlink_to(outside)
    assert await reason_of_listing("pvc://claim/way/a1", claims) is Reason.UNSAFE_PATH
    assert await reason_of_listing("pvc://claim/end", claims) is Reason.UNSAFE_PATH


async def test_a_hard_link_is_a_file_like_any_other(claims: Path, tmp_path: Path) -> None:
    """Caches and backups are full of them, and none can be made from within a pod."""
    (tmp_path / "blob").write_bytes(b"linked")
    (claims / "claim/t/a1/y").hardlink_to(tmp_path / "blob")
    source = open_source("pvc://claim/t/a1", None, SourcePolicy(claims_dir=claims))
    file = (await source.list_files())[1]
    assert b"".join([chunk async for chunk in source.read(file)]) == b"linked"


async def test_a_claim_that_is_not_mounted_is_not_found(claims: Path) -> None:
    assert await reason_of_listing("pvc://absent/a", claims) is Reason.SOURCE_NOT_FOUND
    with pytest.raises(ReasonedError) as caught:
        open_source("pvc://claim/a", None, SourcePolicy())
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


def test_a_uri_outside_the_allowed_ones_is_refused_before_anything_is_read(claims: Path) -> None:
    policy = SourcePolicy(claims_dir=claims, allowed_uris=("pvc://claim/t/a2", "s3://bucket"))
    for uri in ("pvc://claim/t/a1", "pvc://claim/t/a22", "s3://bucket2/a", "file:///etc"):
        with pytest.raises(ReasonedError) as caught:
            open_source(uri, None, policy)
        assert caught.value.reason is Reason.SOURCE_FORBIDDEN
    assert open_source("pvc://claim/t/a2/x", None, policy).uri == "pvc://claim/t/a2/x"
