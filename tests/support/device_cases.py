"""Cases that between them ask everything of an attention backend and of a device."""

from __future__ import annotations

from tests.support.family_case import ATTENTION, WINDOW, Case

DEVICE_CASES: dict[str, Case] = {
    "llama, biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "windows in some layers, odd heads": Case(
        "gemma3_text",
        {
            "head_dim": 20,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "soft caps": Case(
        "gemma2",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 0.7,
        },
    ),
    "experts": Case(
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        all_linear=ATTENTION,
        ends=("o_proj", "v_proj", "lm_head"),
    ),
    "transformers' own code": Case("olmo2"),
}
