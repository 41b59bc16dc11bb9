import json
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.adapters.credential_file import read_credential
from graft_runtime.errors import ReasonedError


def refusal(folder: Path, key: str) -> str:
    with pytest.raises(ReasonedError) as caught:
        read_credential(folder, key)
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError)
    return caught.value.message


def test_no_key_means_the_pods_own_identity(tmp_path: Path) -> None:
    assert read_credential(tmp_path, None) is None


def test_a_credential_is_read_anew_each_time(tmp_path: Path) -> None:
    for key in ("one", "two"):
        (tmp_path / "team-a.json").write_text(json.dumps({"accessKeyId": key}))
        credential = read_credential(tmp_path, "team-a")
        assert credential is not None
        assert credential.access_key_id == key


def test_a_credential_that_is_not_there_yet_is_tried_again(tmp_path: Path) -> None:
    assert "team-a" in refusal(tmp_path, "team-a")


@pytest.mark.parametrize("key", ["../team-a", "a/b", "", ".", "/etc/passwd", "a\0b", "x" * 300])
def test_a_key_never_becomes_another_path(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (tmp_path / "team-a.json").write_text("{}")
    refusal(folder, key)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "hunter2", '{"secretAccessKey": ["hunter2"]}', '{"hunter3": 1}', '{"region": 7}'],
)
def test_a_malformed_credential_does_not_leak(tmp_path: Path, text: str) -> None:
    (tmp_path / "team-a.json").write_text(text)
    assert "hunter2" not in refusal(tmp_path, "team-a")
