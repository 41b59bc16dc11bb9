"""Bad input is refused where Python leaves every assert out (`PYTHONOPTIMIZE=1`)."""

import os
import subprocess
import sys

import pytest

from tests.support.source_tree import ROOT

BAD_INPUT = (
    "tests/operator/plan/test_accept.py",
    "tests/operator/resources/test_admission.py",
    "tests/protocol/test_desired.py",
    "tests/runtime/adapters/test_peft_config.py",
    "tests/runtime/adapters/test_peft_refusals.py",
    "tests/runtime/adapters/test_safetensors_header.py",
    "tests/runtime/adapters/test_validate.py",
    "tests/runtime/server/test_body.py",
    "tests/runtime/server/test_completion_refusals.py",
    "tests/runtime/server/test_limits.py",
    "tests/runtime/sources/test_claims.py",
    "tests/runtime/sources/test_endpoints.py",
    "tests/runtime/sources/test_files.py",
    "tests/runtime/sources/test_selection.py",
    "tests/runtime/sources/test_uri.py",
)

# pytest rewrites the asserts of test modules, so that these hold here, too.
QUIET = "ignore:assertions not in test modules:pytest.PytestConfigWarning"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_bad_input_is_refused_without_asserts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", QUIET, *BAD_INPUT],
        env=os.environ | {"PYTHONOPTIMIZE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
