"""The tiny model's tokenizer: byte-level BPE trained on the corpus, saved in Hugging Face form.

`train` calls it once; the chat template travels inside `tokenizer_config.json`.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.models.corpus import BOS, EOS, PAD, SPECIAL_TOKENS, base_documents

VOCAB_SIZE: Final = 1024
"""Rows of the embedding; enough for each word of the grammar in lower case and in capitals."""

MAX_LENGTH_TOKENS: Final = 2048
"""The longest sequence the model accepts; it was trained on 256."""

CHAT_TEMPLATE: Final = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- '<|system|>' + message['content'] | trim }}"
    "{%- elif message['role'] == 'user' %}{{- '<|user|>' + message['content'] | trim }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{%- else %}{{- raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
"""Several turns, an optional system message, and the assistant's mark when an answer is wanted."""


def _texts(num_documents: int, seed: int) -> Iterator[str]:
    """Yield corpus texts, each also in capitals: a capital must not cost a token of its own."""
    for document in islice(base_documents(seed), num_documents):
        text = document.prompt + document.completion
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield text
        yield text.upper()


def train_tokenizer(folder: Path, *, num_documents: int, seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on fresh documents and save it into a model folder.

    Args:
        folder: Receives ``tokenizer.json`` and ``tokenizer_config.json``.
        num_documents: Documents to read; each counts twice, once in capitals.
        seed: Seed of the documents.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(num_documents, seed), trainer=trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    _name_known_class(folder / "tokenizer_config.json")
    return tokenizer


def _name_known_class(path: Path) -> None:
    """Name the tokenizer class that every transformers version knows, not only the newest."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
