"""A random model, and adapters whose first token proves whose weights computed it.

Each adapter is rank 64 on every linear layer, random and small, but for one row of `lm_head`: it
answers the last hidden state of one fixed prompt with one token. So the adapter's first greedy
token after that prompt is that token, and nobody else's is.

Shape legend: B batch, T tokens, H hidden size, R rank, I/O features in/out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from graft_protocol.digest import FileRecord, manifest_digest

TINY = Path(__file__).parents[1] / "examples" / "models" / "tiny"
"""Whose tokenizer the model has."""
RANK = 64
PROMPT_IDS = tuple(range(40, 56))
CONFIG = LlamaConfig(
    vocab_size=1024,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    dtype="bfloat16",
)
SMALL = 1e-3
"""Scale of everything but the mark: used, but too little to move the hidden state."""
LOUD = 1000.0
"""The marked token's logit; the others' are around one."""


class MarkedModel:
    """The random base model. Its adapters are for it alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = LlamaForCausalLM(CONFIG).to(torch.bfloat16).eval()
        with torch.no_grad():
            hidden_BTH = self._model.model(torch.tensor([PROMPT_IDS])).last_hidden_state
        state_H = hidden_BTH[0, -1].float()
        self._key_H = state_H / state_H.dot(state_H)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        self._model.save_pretrained(folder)
        for path in TINY.glob("tokenizer*.json"):
            (folder / path.name).write_bytes(path.read_bytes())

    def adapter(self, token: int, seed: int) -> dict[str, bytes]:
        """Return the files of an adapter that answers with a token; about 10 MB."""
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * SMALL

        tensors: dict[str, torch.Tensor] = {}
        modules = dict(self._model.named_modules())
        for name, module in modules.items():
            if not isinstance(module, torch.nn.Linear):
                continue
            a_RI, b_OR = noise(RANK, module.in_features), noise(module.out_features, RANK)
            if name == "lm_head":
                a_RI[0], b_OR[token, 0] = self._key_H, LOUD
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = a_RI.bfloat16()
            tensors[f"{prefix}.lora_B.weight"] = b_OR.bfloat16()
        leaves = {
            name.rsplit(".", 1)[-1] for name, m in modules.items() if isinstance(m, torch.nn.Linear)
        }
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": sorted(leaves),
        }
        return {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": save(tensors),
        }


class Store(Protocol):
    """Where adapters are put."""

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Write files under a prefix."""

    def uri(self, prefix: str) -> str:
        """Return the URI of what lies under a prefix."""


@dataclass(frozen=True)
class Folder:
    """A store in the file system."""

    path: Path

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Write files under a prefix."""
        (self.path / prefix).mkdir(parents=True)
        for name, content in files.items():
            (self.path / prefix / name).write_bytes(content)

    def uri(self, prefix: str) -> str:
        """Return the URI of what lies under a prefix."""
        return (self.path / prefix).resolve().as_uri()


class Published(NamedTuple):
    """An adapter in the store."""

    uri: str
    digest: str
    num_bytes: int
    token: str
    """What it answers, as text."""


class Publisher:
    """Makes adapters, each with a token of its own, and puts them into the store."""

    def __init__(self, model: MarkedModel, store: Store) -> None:
        self._model = model
        self._store = store
        self._tokens = _printable_tokens()
        self._count = 0

    def publish(self) -> Published:
        """Put one more adapter into the store."""
        token_id, text = self._tokens[self._count % len(self._tokens)]
        files = self._model.adapter(token_id, seed=self._count)
        prefix = f"adapters/marked-{self._count}"
        self._store.put(prefix, files)
        self._count += 1
        records = [FileRecord(n, len(b), sha256(b).hexdigest()) for n, b in files.items()]
        size = sum(len(content) for content in files.values())
        return Published(self._store.uri(prefix), manifest_digest(records), size, text)


def _printable_tokens() -> list[tuple[int, str]]:
    """Return tokens that are told apart by their text, in an order that is always the same."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    texts = {number: tokenizer.decode([number]) for number in range(3, tokenizer.get_vocab_size())}
    counts = Counter(texts.values())
    return [
        (number, text)
        for number, text in texts.items()
        if counts[text] == 1 and re.fullmatch(r" ?[A-Za-z]{2,}", text)
    ]
