"""A named profile of the AWS tools (``AWS_PROFILE``) as the pod's own identity for ``s3://``.

The store's client knows keys in variables and web identity, and no profiles. Profiles that would
have to be exchanged for keys first (roles, single sign-on, commands) are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from configparser import ConfigParser, Error
from pathlib import Path

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

_ELSEWHERE = ("credential_process", "role_arn", "sso_session", "sso_start_url")


def profile_credential(environment: Mapping[str, str]) -> Credential | None:
    """Return the keys of the chosen profile; None where none is chosen or keys are given directly.

    Reads the files each time, so that rotated keys are used at once.

    Raises:
        ReasonedError: SecretNotFound when the profile does not exist or holds no keys.
    """
    name = environment.get("AWS_PROFILE")
    if not name or environment.get("AWS_ACCESS_KEY_ID"):
        return None
    home = Path(environment.get("HOME") or "/")
    keys = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials")
    config = Path(environment.get("AWS_CONFIG_FILE") or home / ".aws/config")
    section = "default" if name == "default" else f"profile {name}"
    found = {**_section(config, section), **_section(keys, name)}
    if not found.get("aws_access_key_id"):
        elsewhere = next((field for field in _ELSEWHERE if field in found), None)
        why = f"{elsewhere} is not supported" if elsewhere else "there are no keys of that name"
        raise ReasonedError(Reason.SECRET_NOT_FOUND, f"AWS_PROFILE {name!r}: {why}")
    return Credential(
        access_key_id=found["aws_access_key_id"],
        secret_access_key=found.get("aws_secret_access_key"),
        session_token=found.get("aws_session_token"),
        region=found.get("region"),
    )


def _section(path: Path, name: str) -> dict[str, str]:
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read(path)
    except (OSError, UnicodeDecodeError, Error) as error:
        # The text would quote the file, which is secret.
        message = f"{path.name} cannot be read: {type(error).__name__}"
        raise ReasonedError(Reason.SECRET_NOT_FOUND, message) from None
    return dict(parser[name]) if parser.has_section(name) else {}
