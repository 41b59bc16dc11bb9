"""Content identity."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.digest import (
    FileRecord,
    canonical_manifest,
    digest_bytes,
    is_adapter_file,
    is_digest,
    manifest_digest,
    short_digest,
)

HEX = "0" * 64
records = st.builds(
    FileRecord, st.text("abc/.", min_size=1), st.integers(0, 2**40), st.sampled_from([HEX])
)


def test_the_manifest_is_one_sorted_line_per_file() -> None:
    files = [FileRecord("b.safetensors", 7, "2" * 64), FileRecord("adapter_config.json", 3, HEX)]
    manifest = f"adapter_config.json 3 {HEX}\nb.safetensors 7 {'2' * 64}\n".encode()
    assert canonical_manifest(files) == manifest
    assert manifest_digest(files) == "sha256:" + hashlib.sha256(manifest).hexdigest()


@given(st.lists(records, max_size=5), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_files(
    files: list[FileRecord], random: Random
) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)
    assert manifest_digest(files) == manifest_digest(shuffled)


@given(st.lists(records, min_size=1, max_size=5, unique_by=lambda file: file.path))
def test_the_digest_changes_with_any_file(files: list[FileRecord]) -> None:
    changed = [files[0]._replace(size=files[0].size + 1), *files[1:]]
    assert manifest_digest(files) != manifest_digest(changed)
    assert manifest_digest(files) != manifest_digest(files[1:])


def test_the_bytes_of_a_digest_are_the_hash_of_the_manifest() -> None:
    files = [FileRecord("adapter_config.json", 1, "0" * 64)]
    wanted = hashlib.sha256(canonical_manifest(files)).digest()
    assert digest_bytes(manifest_digest(files)) == wanted
    with pytest.raises(ValueError, match="hex"):
        digest_bytes("sha256:no")


def test_only_full_digests_are_digests() -> None:
    digest = manifest_digest([])
    assert is_digest(digest)
    assert len(short_digest(digest)) == 12
    assert not is_digest(digest[:-1])
    assert not is_digest(digest.upper())
    assert not is_digest(digest.removeprefix("sha256:"))


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("adapter_config.json", True),
        ("adapter_model.safetensors", True),
        ("README.md", False),
        ("tokenizer.json", False),
        ("checkpoint-1/adapter_model.safetensors", False),
        ("adapter_model.bin", False),
    ],
)
def test_only_config_and_weights_are_an_adapters_identity(path: str, counts: bool) -> None:
    assert is_adapter_file(path) is counts
