"""Prompt files: what is read, and which line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfq.convert.prompts import Prompt, check_prompts, read_prompts
from hfq.schema.errors import HfqError, MalformedFileError, MissingPathError, UsageError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_lines(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path, "\ufeffa cat \r\n\n  une fenêtre\n一个\u2028猫"))
    assert [prompt.text for prompt in found] == ["a cat", "une fenêtre", "一个\u2028猫"]


def test_json_lines(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "a cat", "id": "p1", "category": "animal", "image": "cat.png"}\n{"prompt": "b", "image": "blank"}'
    )
    found = read_prompts(write(tmp_path, lines))
    assert found == [
        Prompt("a cat", id="p1", category="animal", image=str(tmp_path / "cat.png")),
        Prompt("b", image="blank"),
    ]


def test_one_text_with_two_images_is_two_prompts(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "image": "1.png"}\n{"prompt": "a", "image": "2.png"}'
    assert len(read_prompts(write(tmp_path, lines))) == 2


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", UsageError, "no prompts"),
        (" \n\t\n", UsageError, "no prompts"),
        ("a cat\na dog\na cat", UsageError, "number 1 and 3"),
        ('a cat\n{"prompt": "a cat"}', UsageError, "number 1 and 2"),
        ('a cat\n{"prompt": "b"', MalformedFileError, "line 2"),
        ('{"text": "b"}', MalformedFileError, "without a `prompt`"),
        ('{"prompt": 3}', MalformedFileError, "without a `prompt`"),
        ('{"prompt": " "}', MalformedFileError, "line 1"),
        ('{"prompt": "a", "prompt": "b"}', HfqError, "twice"),
        ('{"prompt": "a", "img": "b"}', MalformedFileError, "img"),
        ('{"prompt": "a", "id": 7}', MalformedFileError, "`id`"),
        ('{"prompt": "a", "image": ""}', MalformedFileError, "`image`"),
        ('{"prompt": "\\ud800"}', MalformedFileError, "line 1"),
        (b"a \xff cat", MalformedFileError, "UTF-8"),
        ("x" * 20_001, MalformedFileError, "too long"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | bytes, error: type[HfqError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_prompts(write(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(HfqError):
        read_prompts(tmp_path)


def test_lists_are_checked_like_files() -> None:
    for prompts in ([], [Prompt("a"), Prompt("a")], [Prompt("")]):
        with pytest.raises(HfqError):
            check_prompts(prompts, "prompts")


def test_seed_depends_on_text_and_seed_alone() -> None:
    assert Prompt("a", id="x").seed(42) == Prompt("a").seed(42)
    assert len({Prompt("a").seed(42), Prompt("b").seed(42), Prompt("a").seed(43)}) == 3
    assert 0 <= Prompt("a").seed(42) < 2**53
