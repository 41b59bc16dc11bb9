"""The gate over the attention backend that every device can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft_runtime.layers.attention.gather import GatherAttention
from tests.support.device_cases import DEVICE_CASES
from tests.support.family_case import CaseMaker
from tests.support.gate import GateSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CaseMaker:
    return CaseMaker(DEVICE_CASES, tmp_path_factory)


@pytest.mark.parametrize("name", DEVICE_CASES)
def test_every_row_agrees_over_gathered_blocks(name: str, made: CaseMaker, tmp_path: Path) -> None:
    made(name).agrees(tmp_path, GateSettings(attention=GatherAttention))
