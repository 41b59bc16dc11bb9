"""Write the JSON schemas of everything on the wire: ``python -m graft_protocol.schemas``.

The files are checked in; a test compares them with the models and with what earlier versions
promised, so that a change of the contract is a decision and not an accident.
"""

from __future__ import annotations

import json
from pathlib import Path

from graft_protocol.base import Message
from graft_protocol.config import RuntimeConfig
from graft_protocol.credentials import Credential
from graft_protocol.desired import Shard
from graft_protocol.status import RuntimeStatus

SCHEMAS_DIR = Path(__file__).parent / "schema"
DOCUMENTS: dict[str, type[Message]] = {
    "credential": Credential,
    "runtime-config": RuntimeConfig,
    "runtime-status": RuntimeStatus,
    "shard": Shard,
}


def schema_text(name: str) -> str:
    """Return the JSON schema of one document as the file holds it."""
    schema = DOCUMENTS[name].model_json_schema(by_alias=True)
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write every schema file."""
    SCHEMAS_DIR.mkdir(exist_ok=True)
    for name in DOCUMENTS:
        (SCHEMAS_DIR / f"{name}.json").write_text(schema_text(name))


if __name__ == "__main__":
    main()
