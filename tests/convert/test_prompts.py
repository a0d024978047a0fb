"""Prompt files: what is read, and which line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfq.convert.prompts import (
    Prompt,
    check_prompts,
    distinct_prompts,
    read_prompts,
    repeats_line,
    sample_numbers,
)
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


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('["a cat", "a dog"]', ["a cat", "a dog"]),
        ('[\n  "a cat",\n  "a [wide] dog"\n]\n', ["a cat", "a [wide] dog"]),
        ('[{"prompt": "a cat", "id": "1"}, "a dog"]', ["a cat", "a dog"]),
        ('[\r\n{"prompt": "a cat"},\r\n{"prompt": "a dog"}\r\n]', ["a cat", "a dog"]),
        ('{\n  "prompt": "a cat"\n}', ["a cat"]),
        ('{"prompt": "a cat"}', ["a cat"]),
        ('"a cat"\n"a \\"big\\" dog"', ["a cat", 'a "big" dog']),
        ('"a cat" says the sign\n"a dog"', ['"a cat" says the sign', '"a dog"']),
        ("[wide shot] a cat\n[close-up] a dog", ["[wide shot] a cat", "[close-up] a dog"]),
        ("a cat\r\na dog\ra bird", ["a cat", "a dog", "a bird"]),
        ("prompting a cat, softly\na dog", ["prompting a cat, softly", "a dog"]),
        ("- a cat", ["- a cat"]),
    ],
)
def test_lines_and_json(tmp_path: Path, text: str, prompts: list[str]) -> None:
    assert [prompt.text for prompt in read_prompts(write(tmp_path, text))] == prompts


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", '["a cat", "a dog"', "too early"),
        ("p.txt", '[\n  "a cat",\n  "a dog",\n]', "p.txt"),
        ("p.txt", '["a cat", 3]', "entry 2"),
        ("p.txt", "['a cat', 'a dog']", "p.txt"),
        ("p.txt", '[["a cat"]]', "entry 1"),
        ("p.txt", '[{"prompt_en": "a cat", "dimension": ["x"]}]', "found dimension, prompt_en"),
        ("p.txt", '["a cat", " "]', "entry 2"),
        ("p.txt", '["a cat"]\n["a dog"]', "p.txt"),
        ("p.txt", 'a cat\n["a dog"]', "line 2"),
        ("p.json", '{"prompts": ["a cat"]}', "without a `prompt`"),
        ("p.txt", '{\n "prompts": [\n"a cat"]}', "without a `prompt`"),
        ("p.txt", "[" * 100_000, "p.txt"),
        ("p.csv", "a cat\na dog", "a table"),
        ("p.txt", "id,prompt\n1,a cat", "a table"),
        ("p.txt", "prompt\tcategory\na cat\tanimal", "a table"),
        ("p.yaml", "a cat", "YAML"),
        ("p.txt", "- a cat\n- a dog", "YAML or Markdown"),
        ("p.txt", "prompts:\n  - a cat", "YAML or Markdown"),
        ("p.txt", "prompt: a cat\nprompt: a dog", "field's name"),
        ("p.txt", "1. a cat\n2. a dog", "numbered list"),
        ("p.txt", "# animals\n- a cat\n- a dog", "a comment or a heading: '# animals'"),
        ("p.txt", "a cat\n#\na dog", "a comment or a heading: '#'"),
        ("p.txt", "a cat\n// places\na bay", "a comment or a heading: '// places'"),
        ("p.txt", '"a cat",\n"a dog",\n', "list without its brackets"),
        ("p.txt", "'a cat',\n'a dog'\n", "list without its brackets"),
        ("p.json", "null", "no prompt; .* found null"),
        ("p.json", "3.5\n", "no prompt; .* found 3.5"),
        ("p.jsonl", "true", "no prompt; .* found true"),
        ("p.txt", "<?xml version='1.0'?>\n<p>a cat</p>", "markup"),
        ("p.txt", "a\x00 \x00c\x00a\x00t\x00", "control character"),
    ],
)
def test_what_is_neither_lines_nor_json(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text, newline="")
    with pytest.raises(HfqError, match=says):
        read_prompts(path)


def test_a_repeated_prompt_is_listed_again(tmp_path: Path) -> None:
    """As in six of VBench's own lists; another category or id is still the same prompt."""
    found = read_prompts(write(tmp_path, 'a cat\na dog\na cat\n{"prompt": "a cat", "id": "x"}'))
    assert sample_numbers(found) == [0, 0, 1, 2]
    assert [prompt.text for prompt in distinct_prompts(found)] == ["a cat", "a dog"]
    assert repeats_line(found) == "2 of 4 prompts occurred before in the list; each is run once"
    assert repeats_line(distinct_prompts(found)) is None


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(HfqError):
        read_prompts(tmp_path)


def test_lists_are_checked_like_files() -> None:
    for prompts in ([], [Prompt("")]):
        with pytest.raises(HfqError):
            check_prompts(prompts, "prompts")


def test_seed_depends_on_text_and_seed_alone() -> None:
    assert Prompt("a", id="x").seed(42) == Prompt("a").seed(42)
    assert len({Prompt("a").seed(42), Prompt("b").seed(42), Prompt("a").seed(43)}) == 3
    assert 0 <= Prompt("a").seed(42) < 2**53
