from pathlib import Path

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.aws_profile import profile_credential

CREDENTIALS = """
[default]
aws_access_key_id = one
aws_secret_access_key = 1%x

[team]
aws_access_key_id = two
aws_secret_access_key = 2
aws_session_token = t
"""
CONFIG = """
[default]
region = eu-central-1

[profile team]
region = eu-west-1

[profile borrowed]
role_arn = arn:aws:iam::1:role/x
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws/config").write_text(CONFIG)
    return {"HOME": str(tmp_path)}


def test_a_profile_has_its_keys_and_its_region(home: dict[str, str]) -> None:
    assert profile_credential(home | {"AWS_PROFILE": "team"}) == Credential(
        access_key_id="two", secret_access_key="2", session_token="t", region="eu-west-1"
    )
    assert profile_credential(home | {"AWS_PROFILE": "default"}) == Credential(
        access_key_id="one", secret_access_key="1%x", region="eu-central-1"
    )


def test_without_a_profile_or_with_keys_of_its_own_the_environment_decides(
    home: dict[str, str],
) -> None:
    assert profile_credential(home) is None
    assert profile_credential(home | {"AWS_PROFILE": "team", "AWS_ACCESS_KEY_ID": "x"}) is None


@pytest.mark.parametrize(
    ("name", "said"), [("absent", "no keys of that name"), ("borrowed", "role_arn")]
)
def test_a_profile_without_keys_is_refused_by_name(
    home: dict[str, str], name: str, said: str
) -> None:
    with pytest.raises(ReasonedError) as caught:
        profile_credential(home | {"AWS_PROFILE": name})
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
    assert said in caught.value.message


def test_a_file_that_is_no_config_is_refused_without_being_quoted(
    home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "odd").write_text("hunter2")
    environment = home | {
        "AWS_PROFILE": "team",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "odd"),
    }
    with pytest.raises(ReasonedError) as caught:
        profile_credential(environment)
    assert "hunter2" not in caught.value.message
