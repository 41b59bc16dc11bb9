"""Paged attention equals softmax over the whole context, wherever its blocks lie.

Shape legend: n tokens of a request, L its context length, Q query heads, K key/value heads, D head
size.
"""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graft_runtime.layers.attention.base import (
    AttentionFactory,
    AttentionTraits,
    PagedKv,
    kv_bytes_per_block,
)
from graft_runtime.layers.attention.choose import choose_attention
from graft_runtime.layers.attention.cpu import CpuAttention
from graft_runtime.layers.attention.cpu_decode import Decode, group_decodes
from graft_runtime.layers.attention.gather import GatherAttention, Piece, groups
from graft_runtime.layers.attention.varlen import FEATURES, VarlenAttention
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.rope_spec import RopeSpec
from graft_runtime.models.arch import DecoderArch
from tests.support.varlen_kernel import varlen_attn

CPU = torch.device("cpu")
BLOCK, HEADS, KV_HEADS, DIM = 4, 6, 2, 8


def plain(traits: AttentionTraits, q_nQD: Tensor, k_LKD: Tensor, v_LKD: Tensor) -> Tensor:
    """Attend token by token, head by head, in float64."""
    count, length = len(q_nQD), len(k_LKD)
    out = torch.zeros_like(q_nQD, dtype=torch.float64)
    for token in range(count):
        end = length - count + token + 1
        window = traits.windows[1]
        seen = slice(0 if window is None else max(0, end - window), end)
        for head in range(HEADS):
            keys = k_LKD[seen, head // (HEADS // KV_HEADS)].double()
            scores = keys @ q_nQD[token, head].double() * traits.scale
            if traits.softcap is not None:
                scores = (scores / traits.softcap).tanh() * traits.softcap
            values = v_LKD[seen, head // (HEADS // KV_HEADS)].double()
            out[token, head] = scores.softmax(dim=0) @ values
    return out


PLAIN = AttentionTraits(DIM**-0.5, (None, None))

BACKENDS: dict[str, AttentionFactory] = {
    "cpu": CpuAttention,
    "gather": GatherAttention,
    "varlen, blocks gathered": lambda kv, traits: VarlenAttention(kv, traits, varlen_attn),
    "varlen, blocks in place": lambda kv, traits: VarlenAttention(
        kv, traits, varlen_attn, page_multiple=1
    ),
}


def check(
    lengths: list[tuple[int, int]],
    tables: list[list[int]],
    num_blocks: int,
    traits: AttentionTraits = PLAIN,
    backend: AttentionFactory = CpuAttention,
) -> None:
    """Fill the cache with each row's past, then run a step and compare."""
    generator = torch.Generator().manual_seed(0)
    kv = PagedKv(2, num_blocks, BLOCK, KV_HEADS, DIM, torch.float32, CPU)
    starts, mapping, queries, keys, values = [0], [], [], [], []
    for (count, length), table in zip(lengths, tables, strict=True):
        k_LKD = torch.randn(length, KV_HEADS, DIM, generator=generator)
        v_LKD = torch.randn(length, KV_HEADS, DIM, generator=generator)
        slots = [table[at // BLOCK] * BLOCK + at % BLOCK for at in range(length)]
        past = length - count
        kv.write(1, k_LKD[:past], v_LKD[:past], torch.tensor(slots[:past], dtype=torch.int64))
        starts.append(starts[-1] + count)
        mapping += slots[past:]
        queries.append(torch.randn(count, HEADS, DIM, generator=generator))
        keys.append(k_LKD)
        values.append(v_LKD)
    batch = ForwardBatch(
        token_ids_T=torch.zeros(starts[-1], dtype=torch.int64),
        positions_T=torch.zeros(starts[-1], dtype=torch.int64),
        slot_mapping_T=torch.tensor(mapping),
        query_starts=starts,
        seq_lens=[length for _, length in lengths],
        block_tables=tables,
        adapter_slots=[0] * len(lengths),
        rope_variants=[0] * len(lengths),
        logits_rows_S=torch.zeros(0, dtype=torch.int64),
    )
    new_k = torch.cat(
        [k[length - count :] for k, (count, length) in zip(keys, lengths, strict=True)]
    )
    new_v = torch.cat(
        [v[length - count :] for v, (count, length) in zip(values, lengths, strict=True)]
    )
    out = backend(kv, traits).prepare(batch).attend(1, torch.cat(queries), new_k, new_v)
    expected = torch.cat([plain(traits, *row) for row in zip(queries, keys, values, strict=True)])
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert not kv.keys_NBKD[0].any(), "another layer's cache was written"


SHAPE = st.integers(1, 30).flatmap(lambda end: st.tuples(st.integers(1, end), st.just(end)))
"""New tokens, and the context's length with them."""


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    shapes=st.lists(
        st.integers(1, 30).flatmap(
            lambda length: st.tuples(st.integers(1, length), st.just(length))
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.none() | st.integers(0, 99),
    window=st.none() | st.integers(1, 33),
    other_window=st.none() | st.integers(1, 33),
    softcap=st.none() | st.floats(0.1, 2.0),
)
def test_any_mix_of_chunks_and_decodes(
    backend: str,
    shapes: list[tuple[int, int]],
    seed: int | None,
    window: int | None,
    other_window: int | None,
    softcap: float | None,
) -> None:
    free = list(range(50))
    if seed is not None:
        random.Random(seed).shuffle(free)
    tables = []
    for _, length in shapes:
        used = -(-length // BLOCK)
        tables.append(free[:used])
        free = free[used:]
    cap = None if backend.startswith("varlen") else softcap
    traits = AttentionTraits(0.4, (other_window, window), cap)
    check(shapes, tables, 50, traits, BACKENDS[backend])


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 6])
def test_many_decodes_of_unlike_length_are_computed_together(
    window: int | None, softcap: float | None
) -> None:
    lengths = [1, 3, 4, 5, 8, 9, 60, 61, 62, 63, 30, 2]
    free = list(range(120))
    random.Random(1).shuffle(free)
    tables = [[free.pop() for _ in range(-(-length // BLOCK))] for length in lengths]
    shapes = [(1, length) for length in lengths]
    check(
        [*shapes, (5, 7)], [*tables, free[:2]], 120, AttentionTraits(0.4, (None, window), softcap)
    )


def test_decodes_share_a_product_unless_too_much_of_it_is_padding() -> None:
    def decode(blocks: int) -> Decode:
        return Decode(0, list(range(blocks)), 0, blocks * 32)

    found = group_decodes([decode(blocks) for blocks in (5, 6, 7, 8, 64, 60, 400)], 32)
    assert [[len(one.blocks) for one in group] for group in found] == [
        [400],
        [64, 60],
        [8, 7, 6, 5],
    ]
    assert [len(group) for group in group_decodes([decode(8)] * 70, 32)] == [32, 32, 6]


def test_what_an_ended_request_left_in_a_block_reaches_nobody() -> None:
    kv = PagedKv(1, 4, BLOCK, KV_HEADS, DIM, torch.float32, CPU)
    left = torch.full((4 * BLOCK, KV_HEADS, DIM), float("nan"))
    kv.write(0, left, left, torch.arange(4 * BLOCK))
    batch = ForwardBatch(
        token_ids_T=torch.zeros(4, dtype=torch.int64),
        positions_T=torch.zeros(4, dtype=torch.int64),
        slot_mapping_T=torch.arange(4) * BLOCK,
        query_starts=[0, 1, 2, 3, 4],
        seq_lens=[1] * 4,
        block_tables=[[0], [1], [2], [3]],
        adapter_slots=[0] * 4,
        rope_variants=[0] * 4,
        logits_rows_S=torch.zeros(0, dtype=torch.int64),
    )
    values = torch.randn(4, KV_HEADS, DIM)
    step = CpuAttention(kv, AttentionTraits(1.0, (None,))).prepare(batch)
    out = step.attend(0, torch.randn(4, HEADS, DIM), torch.randn(4, KV_HEADS, DIM), values)
    assert torch.equal(out, values.repeat_interleave(HEADS // KV_HEADS, dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_beyond_the_context_are_not_read(backend: str) -> None:
    # Blocks are allocated ahead; the table's tail may break the run and hold anything.
    check([(1, 5), (3, 8)], [[3, 4, 0], [7, 8, 1, 2]], 10, backend=BACKENDS[backend])


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_bounds_on_memory_cut_groups_and_pieces(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft_runtime.layers.attention.gather.MAX_SCORES", 40)
    monkeypatch.setattr("graft_runtime.layers.attention.gather.MAX_GATHERED", 30)
    shapes = [(1, 9), (9, 9), (1, 30), (17, 30), (2, 3)]
    tables = [list(range(8 * row, 8 * row + 8)) for row in range(5)]
    check(shapes, tables, 40, AttentionTraits(0.4, (None, 7), softcap), GatherAttention)


def test_pieces_of_similar_size_share_a_product() -> None:
    def piece(count: int, length: int) -> Piece:
        return Piece(start=0, count=count, position=length - count, first=0, row=0)

    decodes = [piece(1, 100 + number) for number in range(64)]
    chunk, far = piece(200, 300), piece(1, 9000)
    found = list(groups([chunk, *decodes, far]))
    assert [len(group) for group in found] == [64, 1, 1]
    assert found[1:] == [[far], [chunk]]


@pytest.mark.parametrize(
    ("device", "dtype", "dim", "softcap", "lacking"),
    [
        ("cpu", torch.bfloat16, 64, None, "device cpu"),
        ("meta", torch.float32, 64, None, "dtype torch.float32"),
        ("meta", torch.bfloat16, 12, None, "heads of 12"),
        ("meta", torch.bfloat16, 264, None, "heads of 264"),
        ("meta", torch.bfloat16, 64, 30.0, "a soft cap"),
        ("meta", torch.bfloat16, 64, None, None),
    ],
)
def test_a_backend_says_what_it_lacks(
    device: str, dtype: torch.dtype, dim: int, softcap: float | None, lacking: str | None
) -> None:
    kv = PagedKv(1, 1, BLOCK, 1, dim, dtype, torch.device(device))
    features = FEATURES if device == "cpu" else replace(FEATURES, devices=frozenset({"meta"}))
    assert features.lacks(kv, AttentionTraits(1.0, (None,), softcap)) == lacking


def test_the_first_backend_that_fits_is_chosen() -> None:
    def chosen(device: str) -> object:
        kv = PagedKv(1, 1, BLOCK, 1, 64, torch.bfloat16, torch.device(device))
        return type(choose_attention(kv, AttentionTraits(1.0, (None,))))

    assert chosen("cpu") is CpuAttention
    assert chosen("meta") is GatherAttention


def test_the_cache_starts_as_zeros() -> None:
    kv = PagedKv(3, 4, BLOCK, KV_HEADS, DIM, torch.bfloat16, CPU)
    assert len(kv.keys_NBKD) == len(kv.values_NBKD) == 3
    assert not any(bool(part.any()) for part in kv.keys_NBKD + kv.values_NBKD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_block_are_what_the_cache_takes(dtype: torch.dtype) -> None:
    arch = DecoderArch(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=HEADS * DIM,
        intermediate_size=8,
        num_layers=3,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        norm_eps=1e-5,
        rope=RopeSpec(1e4),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        tie_embeddings=False,
        max_positions=8,
        dtype="float32",
        bos_token_id=None,
        eos_token_ids=(),
        attention_scale=DIM**-0.5,
        windows=(None,) * 3,
    )
    kv = PagedKv(3, 7, BLOCK, KV_HEADS, DIM, dtype, CPU)
    total = sum(part.nbytes for part in kv.keys_NBKD + kv.values_NBKD)
    assert kv_bytes_per_block(arch, BLOCK, dtype) * 7 == total
