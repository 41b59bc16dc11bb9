"""A model folder's tokenizer: text to tokens and back.

Knows neither chat nor requests. The server calls it; `encode` belongs in a worker thread, since
long texts take long. The library lets go of the interpreter's lock in its batch calls alone: so
long inputs go through these, as batches of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Encoding
from tokenizers import Tokenizer as RawTokenizer

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

TOKENIZER_FILE: Final = "tokenizer.json"
SHORT: Final = 2048
"""Characters or tokens that are done in less than a millisecond."""


class Tokenizer:
    """Encodes text as plain text: what looks like a control token in it stays letters.

    Only `encode_trusted` reads control tokens, for text that a chat template wrote.
    """

    def __init__(self, serialized: str) -> None:
        """Build both readings of one tokenizer.

        Args:
            serialized: The content of a ``tokenizer.json``.
        """
        self._trusted = _unbounded(serialized)
        self._plain = _unbounded(serialized)
        self._plain.encode_special_tokens = True
        added = self._trusted.get_added_tokens_decoder()
        self._special = {id: token.content for id, token in added.items() if token.special}
        vocabulary = self._trusted.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        """One more than the largest token id."""
        self.longest_token_chars = max(map(len, vocabulary), default=1)
        """No token stands for more characters than this."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ReasonedError: The file is missing or not a tokenizer.
        """
        try:
            return cls((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            message = f"the model has no {TOKENIZER_FILE}"
            raise ReasonedError(Reason.UNSUPPORTED_MODEL, message) from error
        except ValueError as error:
            message = f"{TOKENIZER_FILE} is not a tokenizer: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of all control tokens."""
        return tuple(self._special.values())

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of a user's text.

        Args:
            text: Anything; control tokens written out in it are read as letters.
            add_special_tokens: Whether the model's own start or end tokens are put around it.
        """
        ids: list[int] = _encoded(self._plain, text, add_special_tokens=add_special_tokens).ids
        return ids

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return each token of a user's text with the characters it stands for, as a slice.

        The model's own start and end tokens are among them, and stand for nothing.
        """
        found = _encoded(self._plain, text, add_special_tokens=True)
        return [
            (id, start, stop) for id, (start, stop) in zip(found.ids, found.offsets, strict=True)
        ]

    def vocabulary_texts(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary writes them, marks of spaces and bytes included."""
        return [self._trusted.id_to_token(id) or "" for id in ids]

    def encode_trusted(self, text: str) -> list[int]:
        """Return the tokens of a template's text, in which control tokens count."""
        ids: list[int] = _encoded(self._trusted, text, add_special_tokens=False).ids
        return ids

    def surround(self, ids: Sequence[int]) -> list[int]:
        """Return tokens with the model's own start and end tokens around them."""
        bare = self.encode("a", add_special_tokens=False)
        whole = self.encode("a", add_special_tokens=True)
        start = next(
            (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole)
        )
        return [*whole[:start], *ids, *whole[start + len(bare) :]]

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the control tokens that are written like one of some texts."""
        wanted = frozenset(texts)
        return frozenset(id for id, text in self._special.items() if text in wanted)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens; incomplete characters become U+FFFD."""
        if len(ids) <= SHORT:
            return self._trusted.decode(ids, skip_special_tokens=skip_special_tokens)
        [text] = self._trusted.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return str(text)

    def is_special(self, id: int) -> bool:
        """Tell whether a token is a control token."""
        return id in self._special

    def special_text(self, id: int) -> str:
        """Return how a control token is written."""
        return self._special[id]

    def out_of_range(self, ids: Iterable[int]) -> int | None:
        """Return the first id that is no token of this vocabulary, or None."""
        return next((id for id in ids if not 0 <= id < self.vocab_size), None)


def _encoded(tokenizer: RawTokenizer, text: str, *, add_special_tokens: bool) -> Encoding:
    if len(text) <= SHORT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    [found] = tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
    return found


def _unbounded(serialized: str) -> RawTokenizer:
    """Read a tokenizer without the truncation and padding that training may have left in it."""
    try:
        tokenizer = RawTokenizer.from_str(serialized)
    except Exception as error:  # the library raises the bare class
        raise ValueError(str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
