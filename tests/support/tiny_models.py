"""Random decoders of a few kilobytes whose every weight matters: comparisons on them have teeth.

At transformers' own initialisation norms are ones, biases zeros and logits nearly flat, so a
dropped bias or an ignored norm changes nothing. Here matrices keep the variance of what passes.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

DEFAULTS: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

LLAMA_BIASES: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}


def make_llama(
    tmp_path: Path, seed: int, *, max_shard_size: str = "1GB", **config_overrides: Any
) -> Path:
    """Save a random Llama in Hugging Face form and return its folder.

    Logits have a standard deviation near 1, norm weights lie in 0.5..1.5, biases are not zero.
    """
    fields = DEFAULTS | LLAMA_BIASES | config_overrides
    return make_model("llama", tmp_path, seed, max_shard_size=max_shard_size, **fields)


def make_model(
    model_type: str,
    tmp_path: Path,
    seed: int,
    *,
    max_shard_size: str = "1GB",
    **config_overrides: Any,
) -> Path:
    """Save a random model of any family in Hugging Face form and return its folder."""
    config = AutoConfig.for_model(model_type, **(DEFAULTS | config_overrides))
    model = AutoModelForCausalLM.from_config(config)
    scale_weights(model, seed)
    if config.dtype is not None:
        model.to(config.dtype)
    folder = tmp_path / f"{model_type}-{seed}"
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def scale_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter again, scaled so that activations and logits keep unit variance."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    # Gemma's norms multiply with one plus their weight.
    zero_is_one = 1.0 if model.config.model_type.startswith("gemma") else 0.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
                weight.sub_(zero_is_one)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.2, generator=generator)
            elif "embed_tokens" in name and not tied:
                weight.normal_(0.0, 2.0, generator=generator)
            else:
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Open a saved model with transformers, the oracle of our decoder."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the others know no float64
    return model.eval()
