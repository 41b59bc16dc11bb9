"""Checkpoints and adapters of random weights, which the benchmarks measure with.

A checkpoint's tokenizer has one token per byte and fillers, so that every token has a text and
grammars can be followed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from graft_runtime.layers.lora.layout import all_groups
from graft_runtime.models.arch import DecoderArch, load_arch

VOCAB = 32_000
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
SMALL = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""For what depends on the number of requests and not on the model."""


def make_checkpoint(folder: Path, config: dict[str, Any]) -> str:
    """Write random weights, a config and a tokenizer to a new folder; return where they are."""
    folder.mkdir(parents=True)
    write_weights(folder, config)
    _write_tokenizer(folder)
    return folder.resolve().as_uri()


def write_weights(folder: Path, config: dict[str, Any]) -> DecoderArch:
    """Write a config and random weights of its shape; return what was made."""
    (folder / "config.json").write_text(json.dumps(config))
    arch = load_arch(folder)
    shapes = {"model.embed_tokens": (arch.vocab_size, arch.hidden_size)}
    for layer, group in all_groups(arch):
        for part in group.slices:
            shapes[arch.module_path(layer, part.module)] = (part.out_features, group.in_features)
    tensors = {
        f"{name}.weight": (torch.randn(shape) * shape[1] ** -0.5).bfloat16()
        for name, shape in shapes.items()
    }
    norms = ["model.norm"]
    for layer in range(arch.num_layers):
        prefix = f"model.layers.{layer}"
        norms += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
    tensors |= {f"{name}.weight": torch.ones(arch.hidden_size).bfloat16() for name in norms}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return arch


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"z{number}z" for number in range(VOCAB - len(alphabet) - 1)]
    vocab = {token: id for id, token in enumerate(["</s>", *alphabet, *fillers])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )


def make_adapter(folder: Path, config: dict[str, Any], seed: int) -> Path:
    """Write a rank-8 adapter of the attention's query and value projections."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    value_width = hidden // heads * config["num_key_value_heads"]
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, width in (("q_proj", hidden), ("v_proj", value_width)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(width, 8, generator=generator) * 0.05
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    settings["target_modules"] = ["q_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
