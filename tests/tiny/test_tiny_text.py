"""Prompts of the tiny model: what a user may say, and what a mistake is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.convert.tiny.text import NULL, SLOTS, TinyTextEncoder, Vocabulary
from hfq.schema.errors import HfqError, MalformedFileError, ShapeMismatchError, UnknownWordError, UsageError


@pytest.fixture(scope="module")
def encoder() -> TinyTextEncoder:
    return TinyTextEncoder.load(WEIGHTS)


@pytest.fixture(scope="module")
def vocabulary(encoder: TinyTextEncoder) -> Vocabulary:
    return encoder.vocabulary


def test_sentence_fills_every_slot(vocabulary: Vocabulary) -> None:
    rows = vocabulary.tokenize("A red circle, moving LEFT over a black background.")
    words = [vocabulary.slots[slot][row - 1] for slot, row in zip(SLOTS, rows, strict=True)]
    assert words == ["circle", "red", "left", "black"]


def test_word_order_and_filler_do_not_matter(vocabulary: Vocabulary) -> None:
    assert vocabulary.tokenize("black, left: circle red") == vocabulary.tokenize(
        "a red circle that moves to the left on a black background"
    )


def test_other_spellings_mean_the_same(vocabulary: Vocabulary) -> None:
    assert vocabulary.tokenize("a violet ball on grey") == vocabulary.tokenize("a purple circle on gray")


def test_every_alias_leads_to_a_word(vocabulary: Vocabulary) -> None:
    for alias, word in vocabulary.aliases.items():
        assert vocabulary.tokenize(alias) == vocabulary.tokenize(word) != (NULL,) * 4


def test_no_word_has_two_meanings(vocabulary: Vocabulary) -> None:
    words = [word for group in vocabulary.slots.values() for word in group]
    words += [*vocabulary.aliases, *vocabulary.filler]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("prompt", ["", "   ", "...", "a moving background"])
def test_prompt_that_says_nothing_is_all_null(vocabulary: Vocabulary, prompt: str) -> None:
    assert vocabulary.tokenize(prompt) == (NULL, NULL, NULL, NULL)


def test_unsaid_slots_are_null(vocabulary: Vocabulary) -> None:
    shape, colour, direction, background = vocabulary.tokenize("a square")
    assert shape != NULL
    assert (colour, direction, background) == (NULL, NULL, NULL)


@pytest.mark.parametrize("word", ["mauve", "elephant", "dont", "kreis", "круг"])
def test_unknown_word_is_refused_by_name(vocabulary: Vocabulary, word: str) -> None:
    with pytest.raises(UnknownWordError, match=word) as caught:
        vocabulary.tokenize(f"a {word} circle")
    assert caught.value.code == "unknown-word"
    assert caught.value.exit_code == 2
    for words in vocabulary.slots.values():
        for known in words:
            assert known in str(caught.value)


def test_two_words_for_one_slot_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UsageError, match=r"colour.*'red' and 'blue'"):
        vocabulary.tokenize("a red blue circle")


def test_saying_a_word_twice_is_fine(vocabulary: Vocabulary) -> None:
    assert vocabulary.tokenize("a red, red circle") == vocabulary.tokenize("a red circle")


def test_encoding_has_one_token_per_slot(encoder: TinyTextEncoder) -> None:
    tokens = encoder(["a red circle moving left over a black background", ""])
    assert tokens.shape == (2, 4, encoder.text_dim)
    assert tokens.dtype == encoder.dtype == torch.bfloat16
    for i, slot in enumerate(SLOTS):
        assert torch.equal(tokens[1, i], encoder.get_buffer(slot)[NULL])
        assert not torch.equal(tokens[0, i], tokens[1, i])


def test_errors_are_shown_to_users(vocabulary: Vocabulary) -> None:
    for prompt in ("a mauve circle", "a red blue circle"):
        with pytest.raises(HfqError):
            vocabulary.tokenize(prompt)


def test_table_of_another_vocabulary_is_refused(encoder: TinyTextEncoder) -> None:
    tables = {slot: encoder.get_buffer(slot) for slot in SLOTS}
    tables["colour"] = tables["colour"][:-1]
    with pytest.raises(ShapeMismatchError, match="colour"):
        TinyTextEncoder(encoder.vocabulary, tables)


def test_vocabulary_with_other_slots_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"slots": {"shape": ["circle"]}, "aliases": {}, "filler": []}))
    with pytest.raises(MalformedFileError, match="shape"):
        Vocabulary.load(path)


def test_alias_of_nothing_is_refused(tmp_path: Path) -> None:
    document = {"slots": {slot: [slot[0]] for slot in SLOTS}, "aliases": {"disc": "circle"}, "filler": []}
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(document))
    with pytest.raises(MalformedFileError, match="circle"):
        Vocabulary.load(path)
