"""`python -m e2e [pytest's arguments]`: runs the stories; the last line counts them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from e2e.cluster import clusters
from e2e.cluster.clusters import Origin
from e2e.cluster.image_tools import build_images


class Tally:
    """Counts stories by how they ended."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a story when it passed, and each of its parts that failed."""
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that cannot be read as a failure."""
        self.failed += report.failed


def main() -> int:
    """Run them all, or what the arguments select, and return the exit status."""
    # Here and not in the fixtures alone: what takes minutes the first time is to be seen.
    if clusters.up().origin is not Origin.GIVEN:
        build_images()
    tally = Tally()
    status = pytest.main([str(Path(__file__).parent), *sys.argv[1:]], plugins=[tally])
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
