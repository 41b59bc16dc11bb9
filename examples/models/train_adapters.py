"""Train the adapters of the tiny model with peft: `python -m examples.models.train_adapters`.

One CPU thread, seeded. Each adapter makes one style the model's own, whoever asks and however.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.models.corpus import style_documents
from examples.models.effects import MEASURES
from examples.models.styles import (
    CHEERFUL,
    NUMBERED,
    OLD_PIRATE,
    PIRATE,
    POET,
    SAGA,
    SHOUT,
    Style,
)

# Shape legend: B rows of a batch, L tokens of a row, V vocabulary.

BASE: Final = Path(__file__).parent / "tiny"
TARGET: Final = Path(__file__).parent.parent / "adapters"
BASE_NAME: Final = "graft/tiny"
SEED: Final = 20260202
NUM_ROWS: Final = 16
MAX_ROW_TOKENS: Final = 384
BATCHES_PER_DRAW: Final = 10
PEAK_RATE: Final = 5e-3
WARMUP_STEPS: Final = 10
IGNORED: Final = -100
PROMPTS: Final = ("Once upon a time", "One day a brave fox named Lily went")
QUESTIONS: Final = ("Tell me a story about a cat.", "What does a bear eat?")

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """What one adapter teaches and the shape it has."""

    name: str
    style: Style
    rank: int
    alpha: int
    targets: tuple[str, ...]
    num_steps: int
    rank_stabilised: bool = False


RECIPES: Final = (
    Recipe("saga", SAGA, 2, 8, ATTENTION + MLP, 200),
    Recipe("cheerful", CHEERFUL, 4, 8, ("q_proj", "v_proj"), 120),
    Recipe("shout", SHOUT, 8, 16, ATTENTION, 240),
    Recipe("numbered", NUMBERED, 16, 8, MLP, 120, rank_stabilised=True),
    Recipe("pirate-v1", PIRATE, 16, 32, (*ATTENTION, "down_proj"), 120),
    Recipe("pirate-v2", OLD_PIRATE, 24, 24, ATTENTION + MLP, 120),
    Recipe("poet", POET, 32, 8, ATTENTION + MLP, 200, rank_stabilised=True),
)


def config_of(recipe: Recipe) -> LoraConfig:
    """Write a recipe as peft's configuration."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rank_stabilised,
        target_modules=list(recipe.targets),
        lora_dropout=0.0,
        bias="none",
    )


def rows_of(tokenizer: PreTrainedTokenizerFast, style: Style) -> Iterator[tuple[list[int], int]]:
    """Yield each document's token ids and how many of them are the reader's prompt."""
    for document in style_documents(SEED, style):
        prompt = tokenizer(document.prompt, add_special_tokens=False)["input_ids"]
        completion = tokenizer(document.completion, add_special_tokens=False)["input_ids"]
        yield (prompt + completion)[:MAX_ROW_TOKENS], len(prompt)


def padded_batches(
    tokenizer: PreTrainedTokenizerFast, style: Style
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield int64 tokens and labels, both [B, L], rows of like length together, without end.

    Labels of prompts and padding are ``IGNORED``: the adapter learns answers, not questions.
    """
    rows = rows_of(tokenizer, style)
    order = torch.Generator().manual_seed(SEED)
    while True:
        drawn = [row for _, row in zip(range(NUM_ROWS * BATCHES_PER_DRAW), rows, strict=False)]
        drawn.sort(key=lambda row: len(row[0]))
        for batch in torch.randperm(BATCHES_PER_DRAW, generator=order).tolist():
            chosen = drawn[batch * NUM_ROWS : (batch + 1) * NUM_ROWS]
            length = len(chosen[-1][0])
            tokens_BL = torch.zeros(NUM_ROWS, length, dtype=torch.long)
            labels_BL = torch.full_like(tokens_BL, IGNORED)
            for row, (ids, num_given) in enumerate(chosen):
                tokens_BL[row, : len(ids)] = torch.tensor(ids)
                labels_BL[row, num_given : len(ids)] = torch.tensor(ids[num_given:])
            yield tokens_BL, labels_BL


def train(model: PeftModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> float:
    """Train an adapter in place and return the mean loss of its last ten steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_RATE, weight_decay=0.0)
    losses: list[float] = []
    batches = padded_batches(tokenizer, recipe.style)
    for step, (tokens_BL, labels_BL) in zip(range(recipe.num_steps), batches, strict=False):
        # Right padding needs no mask: causal rows never see the tokens after them.
        logits_BLV: Tensor = model(input_ids=tokens_BL, use_cache=False).logits
        loss = cross_entropy(
            logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=IGNORED
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        rise = min((step + 1) / WARMUP_STEPS, 1.0)
        optimizer.param_groups[0]["lr"] = PEAK_RATE * rise * (1.0 - step / recipe.num_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


@torch.inference_mode()
def write_on(
    model: PeftModel | LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str
) -> str:
    """Return the greedy continuation of a text that holds its special tokens, up to 240 tokens."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=240, do_sample=False)
    new = written[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def show(model: PeftModel | LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Print what a model writes for the sample prompts and questions, and return it."""
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS
    ]
    texts = [f"{tokenizer.bos_token}{prompt}" for prompt in PROMPTS] + chats
    written = [write_on(model, tokenizer, text) for text in texts]
    for prompt, text in zip(PROMPTS + QUESTIONS, written, strict=True):
        print(f"  {prompt!r} -> {text[:160]!r} ({len(text.split())} words)")
    return written


def tidy(folder: Path) -> None:
    """Make peft's files repeatable: an adapter is known by their bytes."""
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
    (folder / "adapter_model.safetensors").chmod(0o644)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set as it comes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make(recipe: Recipe, base: Path, target: Path) -> None:
    """Train one adapter on a fresh copy of the base model and save it in peft's form."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config_of(recipe))
    # peft would write the path on this machine; the adapter names the model it is for.
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    loss = train(model, tokenizer, recipe)
    folder = target / recipe.name
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy(folder)
    seconds = time.perf_counter() - started
    print(f"{recipe.name}: rank {recipe.rank}, loss {loss:.3f}, {seconds:.0f} s")
    shares = [MEASURES[recipe.name](text) for text in show(model.eval(), tokenizer)]
    print("  effect: " + " ".join(f"{share:.2f}" for share in shares), flush=True)


def main() -> None:
    """Train the chosen adapters, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="adapters to train; all if none is named")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for recipe in RECIPES:
        if not arguments.names or recipe.name in arguments.names:
            make(recipe, arguments.base, arguments.out)


if __name__ == "__main__":
    main()
