"""Norm, rotary embedding and linear layer, each against its definition."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from graft_runtime.layers.linear import Linear
from graft_runtime.layers.norm import RmsNorm
from graft_runtime.layers.rope import Rope, frequencies, rotate
from graft_runtime.layers.rope_spec import RopeSpec

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_divides_by_the_root_mean_square(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 32).to(dtype), torch.rand(32).to(dtype)
    exact = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    made = RmsNorm(weight, 1e-5)(x)
    assert made.dtype == dtype
    torch.testing.assert_close(
        made.double(), exact, atol=1e-5, rtol=8e-3 if dtype != torch.float32 else 1e-5
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 33])
def test_linear_is_a_product_and_a_bias(rows: int, dtype: torch.dtype, with_bias: bool) -> None:
    weight, x = torch.randn(48, 40).to(dtype), torch.randn(rows, 40).to(dtype)
    bias = torch.randn(48).to(dtype) if with_bias else None
    exact = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    with torch.inference_mode():
        made = Linear(weight, bias)(x)
    assert made.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(made.double(), exact, atol=tolerance, rtol=tolerance / 5)


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        (RopeSpec(5e5, "linear", 4.0), {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}),
        (
            RopeSpec(5e5, "llama3", 8.0, 1.0, 4.0, 8192),
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            RopeSpec(1e6, "yarn", 4.0, original_max_positions=8192, attention_factor=1.25),
            {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 8192,
                "attention_factor": 1.25,
            },
        ),
        (
            RopeSpec(1e4, "dynamic", 4.0, original_max_positions=8192),
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        ),
        (
            RopeSpec(
                1e4,
                "longrope",
                4.0,
                original_max_positions=8192,
                attention_factor=1.5,
                short_factors=(1.25,) * 64,
                long_factors=tuple(1.0 + at for at in range(64)),
            ),
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "factor": 4.0,
                "attention_factor": 1.5,
                "original_max_position_embeddings": 8192,
                "short_factor": [1.25] * 64,
                "long_factor": [1.0 + at for at in range(64)],
            },
        ),
    ],
)
def test_frequencies_are_those_of_transformers(
    spec: RopeSpec, parameters: dict[str, object]
) -> None:
    config = LlamaConfig(head_dim=128, max_position_embeddings=8192, rope_parameters=parameters)
    for length in (100, 8193, 20_000):
        theirs, _ = ROPE_INIT_FUNCTIONS[spec.kind](config, CPU, seq_len=length)
        ours = frequencies(spec, 128, spec.variant(length))
        torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)
    theirs, scaling = ROPE_INIT_FUNCTIONS[spec.kind](config, CPU)
    assert scaling == spec.attention_factor
    torch.testing.assert_close(frequencies(spec, 128), theirs, atol=0, rtol=1e-6)


def test_rotation_turns_pairs_of_halves_by_their_angle() -> None:
    spec = RopeSpec(100.0)
    rotation = Rope(spec, 8, dtype=torch.float32, device=CPU).rotation(torch.tensor([0, 3, 500]))
    x = torch.randn(3, 2, 8)
    made = rotate(x, rotation)
    assert torch.equal(made[0], x[0])
    for token, position in ((1, 3), (2, 500)):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            left, right = x[token, :, pair], x[token, :, pair + 4]
            cos, sin = math.cos(angle), math.sin(angle)
            expected = torch.stack((left * cos - right * sin, right * cos + left * sin))
            found = torch.stack((made[token, :, pair], made[token, :, pair + 4]))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
