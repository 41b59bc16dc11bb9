"""Read one projected credential at the moment of use, so that a rotation needs no restart."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_MAX_BYTES = 1 << 20


def read_credential(folder: Path, key: str | None) -> Credential | None:
    """Return the credential of a key; None stands for the pod's own identity.

    Raises:
        ReasonedError: SecretNotFound when there is no readable file of that key (yet). Never
            carries any of its content.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise ReasonedError(Reason.SECRET_NOT_FOUND, f"{key!r} is not the key of a credential")
    try:
        with (folder / f"{key}.json").open("rb") as file:
            return Credential.model_validate_json(file.read(_MAX_BYTES))
    except OSError as error:
        message = f"the credential {key!r} is not there: {error.strerror}"
        raise ReasonedError(Reason.SECRET_NOT_FOUND, message) from error
    except ValidationError as error:
        fields = sorted({".".join(map(str, detail["loc"])) for detail in error.errors()})
        message = f"the credential {key!r} is malformed: {', '.join(fields) or 'not an object'}"
        # The cause quotes the input, which is secret.
        raise ReasonedError(Reason.SECRET_NOT_FOUND, message) from None
