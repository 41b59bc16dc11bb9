"""One family, or a variant of one, under the gate: a random model, its adapters, its mutations."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from graft_runtime.engine.kv_cache import common_window
from graft_runtime.models.read import read_model
from tests.support.gate import CPU, GateError, GateSettings
from tests.support.gate_runs import gate
from tests.support.peft_adapters import ALL_LINEAR, load_with_adapters, make_adapter
from tests.support.tiny_models import make_model

Mutation = Callable[[Path], None]

LAYER = "model.layers.1"
WINDOW = 12
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Case:
    """What a family's model is made with, and how it is spoilt."""

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    mutations: Mapping[str, Mutation] = field(default_factory=dict)
    attention: tuple[str, ...] = ("q_proj", "v_proj")
    all_linear: tuple[str, ...] = ALL_LINEAR
    ends: tuple[str, ...] = ("o_proj", "down_proj", "lm_head")
    """Modules at the ends of blocks, and the output projection."""


@dataclass(frozen=True)
class Made:
    """A case on disk, and its reference."""

    case: Case
    model_dir: Path
    adapters: dict[str, Path]

    @cached_property
    def reference(self) -> PeftModel:
        return load_with_adapters(self.model_dir, self.adapters)

    def agrees(self, work_dir: Path, settings: GateSettings | None = None) -> None:
        """Hold every row of mixed batches, with chunks and prefix hits, to the reference."""
        run, verdict = gate(
            self.model_dir,
            self.adapters,
            self.reference,
            work_dir,
            settings,
            count=20,
            repeats=True,
        )
        assert verdict.rows > 200
        assert run.engine.stats().prefix_hits > 0
        assert run.engine.stats().preemptions == 0

    def agrees_when_preempted(self, work_dir: Path, device: torch.device = CPU) -> None:
        """Do it in a pool that is too small."""
        settings = GateSettings(
            num_blocks=11, max_batch_tokens=24, max_chunk_tokens=8, device=device
        )
        # Who gives back what is behind its window makes room for others: more of them must come.
        gives_back = common_window(read_model(self.model_dir).windows) is not None
        count = 60 if gives_back else 20
        run, _ = gate(
            self.model_dir, self.adapters, self.reference, work_dir, settings, count=count
        )
        assert run.engine.stats().preemptions > 2

    def differs_when_spoilt(self, mutation: str, work_dir: Path) -> None:
        """See the gate fail when the engine is given something else than the reference."""
        mutant = work_dir / "mutant"
        shutil.copytree(self.model_dir, mutant)
        self.case.mutations[mutation](mutant)
        with pytest.raises(GateError, match="differ"):
            gate(mutant, self.adapters, self.reference, work_dir, count=8)


def make_case(case: Case, folder: Path) -> Made:
    """Save a case's model and three adapters."""
    config = {"max_position_embeddings": 128, **case.config}
    model_dir = make_model(case.model_type, folder, seed=3, **config)
    adapters = {
        "r4": make_adapter(model_dir, folder / "r4", rank=4, target_modules=case.attention, seed=1),
        "r17": make_adapter(
            model_dir, folder / "r17", rank=17, target_modules=case.all_linear, seed=2
        ),
        "r8": make_adapter(
            model_dir, folder / "r8", rank=8, rslora=True, target_modules=case.ends, seed=3
        ),
    }
    return Made(case, model_dir, adapters)


class CaseMaker:
    """Makes each case once."""

    def __init__(self, cases: Mapping[str, Case], factory: pytest.TempPathFactory) -> None:
        self._cases = cases
        self._factory = factory
        self._known: dict[str, Made] = {}

    def __call__(self, name: str) -> Made:
        if name not in self._known:
            self._known[name] = make_case(self._cases[name], self._factory.mktemp("case"))
        return self._known[name]


def mutations(cases: Mapping[str, Case]) -> list[tuple[str, str]]:
    """List every mutation of every case."""
    return [(name, change) for name, case in cases.items() for change in case.mutations]
