"""Checkpoints are streamed whole and exactly, or refused by the name of what is wrong."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.models.arch import load_arch
from graft_runtime.models.decoder import Decoder
from graft_runtime.models.weights import load_decoder
from tests.support.decoding import CPU, KV
from tests.support.packing import Packer
from tests.support.tensor_memory import TensorMemory
from tests.support.tiny_models import load_reference, make_llama, make_model


def load(
    folder: Path, dtype: torch.dtype = torch.float32, progress: list[tuple[int, int]] | None = None
) -> Decoder:
    steps = progress if progress is not None else []
    return load_decoder(
        folder,
        load_arch(folder),
        dtype=dtype,
        device=CPU,
        kv=KV,
        lora=None,
        on_progress=lambda done, total: steps.append((done, total)),
    )


def refused(folder: Path) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        load(folder)
    return caught.value


def logits(decoder: Decoder, tokens: list[int]) -> Tensor:
    packer = Packer(num_blocks=KV.num_blocks, block_size=KV.block_size, scatter=None)
    with torch.inference_mode():
        return decoder.forward(packer.batch([(packer.sequence(tokens), len(tokens))]))


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")


def test_shards_and_a_single_file_give_the_same_model(tmp_path: Path) -> None:
    whole = make_llama(tmp_path / "whole", seed=1)
    sharded = make_llama(tmp_path / "sharded", seed=1, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(whole), [5, 6, 7]), logits(load(sharded), [5, 6, 7]))


def test_progress_grows_to_all_bytes_of_the_files_tensors(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    steps: list[tuple[int, int]] = []
    load(folder, progress=steps)
    total = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len(steps) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loading_takes_no_more_memory_than_the_weights_and_a_piece(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_llama(tmp_path, seed=1, max_shard_size="100KB")
    monkeypatch.setattr("graft_runtime.models.checkpoint.PIECE_BYTES", 4096)
    shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
    held: list[int] = []

    def look(_done: int, _total: int) -> None:
        held.append(memory.live_bytes)
        assert str(folder) not in Path("/proc/self/maps").read_text(), "a file is mapped"

    with TensorMemory() as memory:
        decoder = load_decoder(
            folder,
            load_arch(folder),
            dtype=dtype,
            device=CPU,
            kv=KvLayout(1, 1),
            lora=None,
            on_progress=look,
        )
    weights = sum(
        math.prod(tensor.shape) * dtype.itemsize
        for shard in folder.glob("*.safetensors")
        for tensor in load_file(shard).values()
    )
    assert len(shards) > 2
    assert held[-1] >= 0.95 * weights, "the count misses what is held"
    assert memory.peak_bytes <= 1.02 * weights + max(shards)
    assert len(decoder.layers) == len(held) - 1


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    path = folder / "model.safetensors"

    def shrink(_done: int, _total: int) -> None:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)

    with pytest.raises(ReasonedError, match="shorter") as caught:
        load_decoder(
            folder,
            load_arch(folder),
            dtype=torch.float32,
            device=CPU,
            kv=KV,
            lora=None,
            on_progress=shrink,
        )
    assert caught.value.reason is Reason.MALFORMED_ARTIFACT


def test_the_model_outlives_its_files(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    decoder = load(folder)
    before = logits(decoder, [1, 2, 3])
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(logits(decoder, [1, 2, 3]), before)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
HALF: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {},
    "gemma3_text": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 56},
    "qwen3_moe": EXPERTS,
}


@pytest.mark.parametrize("family", HALF)
def test_half_precision_is_as_near_to_the_truth_as_transformers(
    tmp_path: Path, family: str
) -> None:
    folder = make_model(family, tmp_path, seed=3, dtype="bfloat16", head_dim=16, **HALF[family])
    tokens = list(range(40, 100))
    exact = load_reference(folder, torch.float64)(torch.tensor([tokens])).logits[0].detach()
    theirs = load_reference(folder, torch.bfloat16)(torch.tensor([tokens])).logits[0].detach()
    ours = logits(load(folder, torch.bfloat16), tokens)

    def error(of: Tensor) -> float:
        return float((of.double() - exact).pow(2).mean().sqrt())

    assert 0 < error(ours) <= 1.5 * error(theirs)


def test_missing_spare_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    good = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, {key: value for key, value in good.items() if key != name})
    missing = refused(folder)
    assert (missing.reason, name in missing.message) == (Reason.MALFORMED_ARTIFACT, True)
    rewrite(folder, good | {name: good[name][:-1].contiguous()})
    misshapen = refused(folder)
    assert (misshapen.reason, name in misshapen.message) == (Reason.SHAPE_MISMATCH, True)
    rewrite(folder, good | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
    spare = refused(folder)
    assert (spare.reason, "q_norm" in spare.message) == (Reason.UNUSED_TENSORS, True)
    rewrite(folder, good | {name: good[name].to(torch.int8)})
    quantised = refused(folder)
    assert (quantised.reason, "I8" in quantised.message) == (Reason.UNSUPPORTED_DTYPE, True)
    rewrite(folder, good | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(folder)


def test_a_tied_model_may_carry_its_output_projection_twice(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1, tie_word_embeddings=True)
    before = logits(load(folder), [1, 2])
    weights = load_file(folder / "model.safetensors")
    rewrite(folder, weights | {"lm_head.weight": torch.zeros(160, 64)})
    assert torch.equal(logits(load(folder), [1, 2]), before)


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert refused(folder).reason is Reason.MALFORMED_ARTIFACT
    path.unlink()
    assert refused(folder).reason is Reason.MALFORMED_ARTIFACT
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    error = refused(folder)
    assert error.reason is Reason.UNSAFE_FORMAT
    assert "pytorch_model.bin" in error.message


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, Reason.UNSAFE_PATH),
        ({"weight_map": {"a": "/etc/passwd"}}, Reason.UNSAFE_PATH),
        ({"weight_map": {"a": "model.bin"}}, Reason.UNSAFE_PATH),
        ({"weight_map": {"a": "absent.safetensors"}}, Reason.MALFORMED_ARTIFACT),
        ({"weight_map": {}}, Reason.MALFORMED_ARTIFACT),
        ({"weight_map": ["model.safetensors"]}, Reason.MALFORMED_ARTIFACT),
        ({}, Reason.MALFORMED_ARTIFACT),
    ],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, index: object, reason: Reason) -> None:
    folder = make_llama(tmp_path, seed=1)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(folder).reason is reason


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1, max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    first, second = load_file(shards[0]), load_file(shards[1])
    save_file(second | {next(iter(first)): next(iter(first.values()))}, shards[1])
    assert refused(folder).reason is Reason.MALFORMED_ARTIFACT


def test_the_arch_decides_what_is_read(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=1)
    arch = dataclasses.replace(load_arch(folder), num_layers=2)
    with pytest.raises(ReasonedError) as caught:
        load_decoder(
            folder,
            arch,
            dtype=torch.float32,
            device=CPU,
            kv=KV,
            lora=None,
            on_progress=lambda done, total: None,
        )
    assert caught.value.reason is Reason.UNUSED_TENSORS
