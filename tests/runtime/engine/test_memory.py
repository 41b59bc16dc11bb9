"""The KV pool's size: what is free beside the heaviest step, never more."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.config import EngineSettings
from graft_protocol.reasons import Reason
from graft_runtime.engine import build
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.memory import (
    GROWTH_MARGIN,
    HostMeter,
    create_meter,
    pool_blocks,
    trial_blocks,
)
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import Sampling, Submit
from graft_runtime.settings import EngineChildSettings
from tests.support.tiny_models import make_model

MIB = 2**20


@dataclass
class StandInMeter:
    """Memory that tells what a test wants."""

    free: int | None
    growth: int = 0
    asked: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.asked.append("begin")

    def growth_bytes(self) -> int:
        self.asked.append("growth")
        return self.growth

    def free_bytes(self) -> int | None:
        self.asked.append("free")
        return self.free


@given(free=st.integers(0, 2**37), growth=st.integers(0, 2**36), block=st.integers(1, 2**24))
def test_pool_and_heaviest_step_fit_together(free: int, growth: int, block: int) -> None:
    blocks = pool_blocks(free, growth, block)
    assert blocks <= 0 or blocks * block + GROWTH_MARGIN * growth < free


@given(
    batch=st.integers(2, 600),
    running=st.integers(1, 300),
    size=st.sampled_from([4, 16, 256]),
    longest=st.integers(3, 900),
)
def test_the_trial_never_waits_for_blocks(
    batch: int, running: int, size: int, longest: int
) -> None:
    limits = SchedulerLimits(size, batch, running, batch)
    assert trial_blocks(limits, longest) * size >= min(batch, running * (longest - 2))


def started(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    meter: StandInMeter,
    model_dir: Path | None = None,
    **options: int,
) -> Engine:
    monkeypatch.setattr(build, "create_meter", lambda _device: meter)
    settings = EngineChildSettings(
        socket=folder / "socket",
        model_dir=model_dir or make_model("llama", folder / "model", seed=1),
        dtype="float32",
        max_model_len=None,
        device_pages=1,
        engine=EngineSettings(max_batch_tokens=32, max_running=4, **options),
    )
    engine, ready = build.build_engine(settings, lambda _progress: None)
    assert ready.kv_blocks == engine.limits.num_blocks
    assert ready.max_model_len <= ready.kv_blocks * ready.block_size
    return engine


def answer(engine: Engine) -> list[int]:
    engine.submit(Submit("r", [5, 6, 7], Sampling(max_tokens=5, temperature=0, ignore_eos=True)))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [id for output in engine.step().outputs for id in output.token_ids]
    engine.check_integrity()
    assert engine.stats().kv_blocks_used == 0
    return tokens


MIXED = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("model_type", "config", "window"),
    [("mistral", {}, 12), ("gemma3_text", MIXED, None)],
)
def test_the_engine_knows_a_window_that_every_layer_has(
    model_type: str,
    config: dict[str, Any],
    window: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model_dir = make_model(model_type, tmp_path, seed=1, sliding_window=12, **config)
    engine = started(tmp_path, monkeypatch, StandInMeter(None), model_dir, kv_blocks=9)
    assert engine.limits.scheduler.window == window


def test_a_measured_pool_is_what_the_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = started(tmp_path / "told", monkeypatch, StandInMeter(None), kv_blocks=9)
    assert told.limits.num_blocks == 9
    meter = StandInMeter(free=72 * MIB, growth=2 * MIB)
    measured = started(tmp_path / "measured", monkeypatch, meter)
    assert meter.asked == ["free", "begin", "growth", "free"]
    unlimited = started(tmp_path / "free", monkeypatch, StandInMeter(None))
    assert 9 < measured.limits.num_blocks < unlimited.limits.num_blocks
    assert answer(measured) == answer(told) == answer(unlimited)


def test_a_limit_that_leaves_nothing_still_leaves_a_step_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(tmp_path, monkeypatch, StandInMeter(free=0, growth=MIB))
    assert engine.limits.num_blocks * 16 == 32
    assert len(answer(engine)) == 5


def test_a_step_that_does_not_run_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        message = "out of memory"
        raise RuntimeError(message)

    monkeypatch.setattr("graft_runtime.engine.runner.sample", fails)
    with pytest.raises(ReasonedError, match="maxBatchTokens 32 and maxRunning 4") as caught:
        started(tmp_path, monkeypatch, StandInMeter(free=MIB))
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY


def test_a_process_reads_its_groups_limit_and_its_own_growth(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    meter = HostMeter(tmp_path, group)
    assert meter.free_bytes() is None, "no control group"
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500\n")
    (group / "memory.stat").write_text(
        "anon 90\nfile_mapped 60\ninactive_file 150\nactive_file 200\n"
    )
    assert meter.free_bytes() is None, "no limit"
    (group / "memory.max").write_text("2000\n")
    assert meter.free_bytes() == 2000 - 500 + 150 + 200 - 60
    (tmp_path / "status").write_text("VmHWM:\t 30 kB\nVmRSS:\t 10 kB\n")
    meter.begin()
    assert meter.growth_bytes() == 20 * 1024


def test_growth_of_this_process_is_seen() -> None:
    meter = create_meter(torch.device("cpu"))
    meter.begin()
    block = torch.ones(8 * MIB)
    assert meter.growth_bytes() >= block.nbytes // 2
