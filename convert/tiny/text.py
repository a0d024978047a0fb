"""Prompts of the tiny Wan: a small vocabulary, and one learnt embedding per slot of a sentence.

A sentence says up to four things: shape, colour, direction, background. Each is one text token; what is not said is
that slot's null embedding, so that the empty prompt is the unconditional branch of classifier-free guidance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hfq.convert.bf16 import to_finite_bf16
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.side_files import read_object
from hfq.schema.errors import MalformedFileError, ShapeMismatchError, UnknownWordError, UsageError

__all__ = ["NULL", "SLOTS", "TinyTextEncoder", "Vocabulary"]

SLOTS = ("shape", "colour", "direction", "background")
NULL = 0  # the row of every table that stands for "not said"

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Vocabulary:
    """The words that a prompt may use.

    `slots` names the words of each slot in the order of its table's rows 1, 2, ...; `aliases` maps other spellings to
    those words; `filler` words are allowed and mean nothing.
    """

    slots: dict[str, tuple[str, ...]]
    aliases: dict[str, str]
    filler: frozenset[str]

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read `vocab.json`.

        Raises:
            MalformedFileError: the document does not name exactly the four slots, a word or a list of words is none, or
                an alias is of an unknown word.
        """
        document = read_object(path)
        slots, aliases, filler = (document.get(part) for part in ("slots", "aliases", "filler"))
        if not isinstance(slots, dict) or tuple(slots) != SLOTS:
            found = ", ".join(map(str, slots)) if isinstance(slots, dict) else type(slots).__name__
            raise MalformedFileError("wrong slots", where=path, expected=", ".join(SLOTS), found=found)
        if not isinstance(aliases, dict):
            raise MalformedFileError("aliases that are none", where=path, expected="word -> word of a slot")
        for name, words in (*slots.items(), ("filler", filler), ("aliases", [*aliases, *aliases.values()])):
            if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
                raise MalformedFileError("words that are none", where=f"{path}: {name}", expected="a list of words")
        known = {word for group in slots.values() for word in group}
        stray = sorted(set(aliases.values()) - known)
        if stray:
            raise MalformedFileError("an alias of an unknown word", where=path, found=", ".join(stray))
        return cls({slot: tuple(words) for slot, words in slots.items()}, dict(aliases), frozenset(filler or ()))

    def tokenize(self, prompt: str) -> tuple[int, int, int, int]:
        """One table row per slot, in the order of `SLOTS`; `NULL` for what the prompt does not say.

        Case and punctuation do not matter; neither does word order.

        Raises:
            UnknownWordError: a word that is neither in a slot nor filler, by name.
            UsageError: two different words for one slot.
        """
        said: dict[str, str] = {}
        for raw in _WORD.findall(prompt.lower()):
            word = self.aliases.get(raw, raw)
            slot = next((slot for slot, words in self.slots.items() if word in words), None)
            if slot is None:
                if word in self.filler:
                    continue
                known = "; ".join(f"{slot}: {', '.join(words)}" for slot, words in self.slots.items())
                raise UnknownWordError(f"the tiny model does not know the word '{raw}'", where="prompt", expected=known)
            if said.setdefault(slot, word) != word:
                raise UsageError(
                    f"a prompt names one {slot}, this one names two",
                    where="prompt",
                    found=f"'{said[slot]}' and '{word}'",
                    todo="keep one of them",
                )
        rows = [self.slots[slot].index(said[slot]) + 1 if slot in said else NULL for slot in SLOTS]
        return rows[0], rows[1], rows[2], rows[3]


class TinyTextEncoder(nn.Module):
    """Prompt in, four text tokens out: a table look-up per slot.

    Args:
        vocabulary: the words; slot s with n words needs a table of 1 + n rows.
        tables: float [1 + n, text_dim] per slot, under the slot's name.
        where: their file, for messages.

    Raises:
        ShapeMismatchError: a table whose shape does not fit the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, tables: dict[str, Tensor], where: object = "text tables") -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.text_dim = tables[SLOTS[0]].shape[1]
        for slot in SLOTS:
            wanted = (1 + len(vocabulary.slots[slot]), self.text_dim)
            if tuple(tables[slot].shape) != wanted:
                raise ShapeMismatchError(
                    "a text table does not fit the vocabulary",
                    where=f"{where}: {slot}",
                    expected=wanted,
                    found=tuple(tables[slot].shape),
                )
            self.register_buffer(slot, tables[slot].clone())

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.bfloat16) -> TinyTextEncoder:
        """Read `vocab.json` and `text_encoder.safetensors` from `folder`.

        Raises:
            MalformedFileError, ShapeMismatchError, NonFiniteWeightError and what reading the two files raises
        """
        path = folder / "text_encoder.safetensors"
        with SafetensorsFile(path) as file:
            if set(file.tensors) != set(SLOTS):
                raise MalformedFileError(
                    "wrong tables", where=path, expected=", ".join(SLOTS), found=", ".join(sorted(file.tensors))
                )
            tables = {slot: file.read(slot) for slot in SLOTS}
        for slot, table in tables.items():
            if table.ndim != 2:
                raise ShapeMismatchError(
                    "a text table that is none",
                    where=f"{path}: {slot}",
                    expected="[words + 1, width]",
                    found=list(table.shape),
                )
            to_finite_bf16(table, f"{path}: {slot}")
        vocabulary = Vocabulary.load(folder / "vocab.json")
        return cls(vocabulary, {slot: table.to(dtype) for slot, table in tables.items()}, path)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tables."""
        return self.get_buffer(SLOTS[0]).dtype

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.get_buffer(SLOTS[0]).device

    def forward(self, prompts: list[str]) -> Tensor:
        """Encode sentences: float [B, 4, text_dim] in the tables' dtype.

        Raises:
            UnknownWordError, UsageError: see `Vocabulary.tokenize`.
        """
        rows = torch.tensor([self.vocabulary.tokenize(prompt) for prompt in prompts], device=self.device)
        return torch.stack([self.get_buffer(slot)[rows[:, i]] for i, slot in enumerate(SLOTS)], dim=1)
