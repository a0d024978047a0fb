"""Every small file beside the weights, damaged in every way: one line that names it, exit 1, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_pipelines import write_pipeline
from torch import Tensor

from hfq.cli import run
from hfq.convert.generation import plan_schedule, scheduler_for
from hfq.convert.pipeline_plan import plan_model
from hfq.convert.pipelines import load_model
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.convert.tiny.text import TinyTextEncoder
from hfq.schema.errors import HfqError

NO_JSON = (b"", b"{", b"[]", b"null", b"3", b"\xff\xfe{}", b"{}{}", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a":' * 5000)
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 1e308, 10**18, "x", "", [], {}, [1], {"a": 1}, [None, None], ["x"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(WEIGHTS, root / "tiny")
    return {"tiny": root / "tiny", "diffusers": write_pipeline(root / "diffusers", "t2v-2.2")}


def plan(folder: Path) -> None:
    """What is done before a weight is read: a schedule, sizes."""
    planned = plan_model(folder)
    plan_schedule(scheduler_for(planned.scheduler, planned.defaults), planned.defaults, list(planned.roles))
    planned.sizes.check(planned.defaults)


def places(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = document.items() if isinstance(document, dict) else enumerate(document[:2])
    for key, value in inner:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def changed(data: bytes, place: tuple[Any, ...], value: Any) -> bytes:
    document = json.loads(data)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(document).encode()


TINY = ("pipeline.json", "vocab.json", "high_noise_model/config.json", "low_noise_model/config.json")
DIFFUSERS = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json")


@pytest.mark.parametrize(("kind", "name"), [*(("tiny", n) for n in TINY), *(("diffusers", n) for n in DIFFUSERS)])
def test_a_damaged_file_is_named(kind: str, name: str, folders: dict[str, Path]) -> None:
    path = folders[kind] / name
    sound = path.read_bytes()
    odd = []
    try:
        for data in NO_JSON:
            path.write_bytes(data)
            with pytest.raises(HfqError) as caught:
                plan(folders[kind])
            assert caught.value.exit_code == 1
            assert str(path) in str(caught.value)
        for place in places(json.loads(sound)):
            for value in VALUES:
                path.write_bytes(changed(sound, place, value))
                try:
                    plan(folders[kind])  # a value may do as well as another
                except HfqError as error:
                    odd += [(place, value, error)] if error.exit_code not in (1, 2) else []
    finally:
        path.write_bytes(sound)
    assert odd == []
    plan(folders[kind])


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "text_encoder/config.json", "vae/config.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": 1', b'{"version": []}'])
def test_a_part_that_a_library_cannot_load_is_one_line(name: str, data: bytes, folders: dict[str, Path]) -> None:
    path = folders["diffusers"] / name
    sound = path.read_bytes()
    path.write_bytes(data)
    try:
        with pytest.raises(HfqError) as caught:
            load_model(folders["diffusers"])
    finally:
        path.write_bytes(sound)
    assert caught.value.exit_code == 1
    assert str(folders["diffusers"]) in str(caught.value)


def tables(change: Callable[[dict[str, Tensor]], object]) -> bytes:
    found = safetensors.torch.load_file(WEIGHTS / "text_encoder.safetensors")
    change(found)
    return safetensors.torch.save(found)


TABLES: dict[str, bytes] = {
    "nothing": b"",
    "noise": b"\x01" * 999,
    "cut": (WEIGHTS / "text_encoder.safetensors").read_bytes()[:-1],
    "a table less": tables(lambda found: found.pop("shape")),
    "a table more": tables(lambda found: found.update(more=torch.zeros(2, 2))),
    "no words": tables(lambda found: found.update(shape=torch.zeros(0, 32))),
    "one axis": tables(lambda found: found.update(shape=torch.zeros(5))),
    "another width": tables(lambda found: found.update({name: table[:, :-1].clone() for name, table in found.items()})),
    "integers": tables(lambda found: found.update(shape=found["shape"].to(torch.int32))),
    "nan": tables(lambda found: found["colour"].view(-1)[3].fill_(torch.nan)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_damaged_text_tables_are_one_line(
    kind: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders["tiny"] / "text_encoder.safetensors"
    sound = path.read_bytes()
    path.write_bytes(TABLES[kind])
    arguments = ["generate", "--base", str(folders["tiny"]), "--prompt", "a red circle", "-o", str(tmp_path / "a.mp4")]
    try:
        assert run(arguments) == 1
    finally:
        path.write_bytes(sound)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"hfq: {path}"), error
    assert "[internal]" not in error


def test_sound_tables_are_read_as_they_are() -> None:
    expected = safetensors.torch.load_file(WEIGHTS / "text_encoder.safetensors")
    found = TinyTextEncoder.load(WEIGHTS, torch.float32)
    assert all(torch.equal(found.get_buffer(name), table.float()) for name, table in expected.items())


@pytest.mark.parametrize("part", ["high_noise_model", "low_noise_model"])
def test_one_expert_of_the_tiny_wan_is_told_what_is_missing(
    part: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    model = folders["tiny"] / part
    arguments = [
        "calibrate",
        str(model),
        "--pipeline",
        str(folders["tiny"]),
        "--prompts",
        str(tmp_path / "prompts.txt"),
    ]
    assert run([*arguments, "--dry-run"]) == 2
    error = capsys.readouterr().err
    for words in (str(model), f"folder {part}", "high_noise and low_noise", "high_noise=FILE,low_noise=FILE"):
        assert words in error
