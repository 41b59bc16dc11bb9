"""Train the tiny base model on one CPU thread and save it: `python -m examples.models.train`.

Everything is seeded: the same library versions on the same processor give the same files.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from examples.models.corpus import base_documents
from examples.models.tokenizer import MAX_LENGTH_TOKENS, VOCAB_SIZE, train_tokenizer

# Shape legend: B rows of a batch, L tokens of a row, V vocabulary.

TARGET: Final = Path(__file__).parent / "tiny"
SEED: Final = 20260101
HELD_OUT_SEED: Final = 7
ROW_TOKENS: Final = 256
WARMUP_STEPS: Final = 60


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama of about a million parameters for the tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def packed_batches(
    tokenizer: PreTrainedTokenizerFast, num_rows: int, seed: int
) -> Iterator[Tensor]:
    """Yield int64 batches [B, L + 1] of documents laid end to end, without end."""
    documents = base_documents(seed)
    size = num_rows * (ROW_TOKENS + 1)
    tokens: list[int] = []
    while True:
        while len(tokens) < size:
            texts = [d.prompt + d.completion for _, d in zip(range(256), documents, strict=False)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                tokens.extend(ids)
        yield torch.tensor(tokens[:size]).view(num_rows, ROW_TOKENS + 1)
        tokens = tokens[size:]


def loss_of(model: LlamaForCausalLM, tokens_BL: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy of packed rows, in nats per token."""
    logits_BLV: Tensor = model(input_ids=tokens_BL[:, :-1], use_cache=False).logits
    return cross_entropy(logits_BLV.flatten(0, 1), tokens_BL[:, 1:].flatten())


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Give the layers' matrices to Muon and everything else to AdamW."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if p.ndim != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_share(step: int, num_steps: int) -> float:
    """Return the share of the peak learning rate at a step: a short rise, then a straight fall."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * (1.0 - step / num_steps)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, num_steps: int, num_rows: int
) -> None:
    """Train the model in place and print the loss now and then."""
    optimizers = build_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    started = time.perf_counter()
    batches = packed_batches(tokenizer, num_rows, SEED)
    for step, tokens_BL in zip(range(num_steps), batches, strict=False):
        loss = loss_of(model, tokens_BL)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_share(step, num_steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps - 1:
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  {seconds:6.1f} s", flush=True)


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the loss on documents that training never drew, in nats per token."""
    tokens_BL = next(packed_batches(tokenizer, 32, HELD_OUT_SEED))
    return loss_of(model, tokens_BL).item()


def main() -> None:
    """Train tokenizer and model and save both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rows", type=int, default=8, help="packed rows of a batch")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(arguments.out, num_documents=4000, seed=SEED)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    train(model, tokenizer, num_steps=arguments.steps, num_rows=arguments.rows)
    print(f"held-out loss {held_out_loss(model, tokenizer):.3f}")
    model.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
