"""`hfq generate`: clips from a base, or from a base with a delta on top."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hfq.commands.clips import chosen_key, signing_options
from hfq.console import emit, format_seconds, json_option, note
from hfq.generation_options import generation_options
from hfq.registry import open_registry
from hfq.schema.errors import InterruptedRunError, OutputExistsError, UsageError

if TYPE_CHECKING:
    from hfq.clip_maker import ClipMaker, MadeClip
    from hfq.convert.prompts import Prompt

__all__ = ["generate_command"]

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@click.command("generate")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option("--delta", help="Quantize with this delta; without it the base itself runs.")
@click.option("--prompt", help="What the clip shows.")
@click.option(
    "--prompts", type=click.Path(readable=False), help="Prompt file, as for `calibrate`: a clip of each, in a folder."
)
@click.option(
    "-o", "--out", type=click.Path(), required=True, help="File to make: .mp4 or .gif; a folder for --prompts."
)
@click.option("--resume", is_flag=True, help="With --prompts: keep the clips that are there and are what is asked for.")
@click.option("--fps", type=click.IntRange(min=1), default=16, show_default=True, help="Frames per second of the file.")
@click.option("--zoom", type=click.IntRange(min=1, max=64), default=1, show_default=True, help="Enlarge every pixel.")
@click.option("--store-prompt", is_flag=True, help="Store the prompt's text in the clip, not its hash alone.")
@click.option("--no-record", is_flag=True, help="Do not record the clip in the registry.")
@signing_options
@generation_options
@json_option
def generate_command(
    base: str,
    delta: str | None,
    prompt: str | None,
    prompts: str | None,
    out: str,
    resume: bool,
    fps: int,
    zoom: int,
    store_prompt: bool,
    no_record: bool,
    sign: bool | None,
    key: str | None,
    certificates: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Generate a clip, or one of every prompt of a file.

    A delta's quantized linears are simulated in the model's dtype.
    An MP4 says what made it: delta, base, seed, settings and the prompt's hash, in its comment tag and, with a key, in
    a signed manifest. It is recorded in the registry when its delta is registered, so that `hfq audit` knows it again.
    With --prompts the weights are read once, every clip has the same seed, and a clip is named by its prompt's id, or
    by its number: two such folders, of a delta and of its base, are what `hfq score measure` compares. A prompt that
    occurs again is another sample of it: its seed is one higher each time. --resume keeps a clip when it says that it
    was made as is asked for, has that size and rate, and its bytes are known to the registry or to the folder's journal
    (.hfq-clips.jsonl); any other is named and refused.

    \b
    hfq generate --base MODEL --prompt "a red circle moving left" -o base.mp4
    hfq generate --base MODEL --delta DELTA --prompt "a red circle moving left" -o quantized.mp4
    hfq generate --base MODEL --delta DELTA --prompts prompts.txt -o clips
    """
    from hfq.clip_maker import ClipMaker, ClipOutput
    from hfq.convert.clip import unused_clip_lines
    from hfq.convert.prompts import Prompt, read_prompts, sample_numbers
    from hfq.convert.video import refuse_clip

    if (prompt is None) == (prompts is None):
        raise UsageError("say what the clip shows, once", expected="either --prompt TEXT or --prompts FILE")
    if resume and prompts is None:
        raise UsageError("--resume goes on with a set of clips", expected="--prompts FILE")
    if prompt is not None:
        wanted, places = [Prompt(prompt)], [Path(out)]
        refuse_clip(places[0])
    else:
        wanted = read_prompts(prompts or "")
        places = _places(Path(out), wanted, resume=resume)
    signing_key = chosen_key(sign, key, certificates) if places[0].suffix == ".mp4" else None
    if not no_record and places[0].suffix == ".mp4":
        open_registry().check_writable()  # now, and not when the clips are made
    maker = ClipMaker(base, delta, given, wanted)
    if prompts is not None:
        _make_folder(Path(out), resume=resume)
    output = ClipOutput(fps, zoom, store_prompt, signing_key, record=not no_record, journal=prompts is not None)
    made: list[MadeClip] = []
    try:
        for text, place, sample in zip(wanted, places, sample_numbers(wanted), strict=True):
            made.append((maker.keep if place.exists() else maker.make)(text, place, output, sample))
            if len(wanted) > 1:
                took = made[-1].seconds
                took_text = "was there" if took is None else format_seconds(took)
                note(f"{len(made)} of {len(wanted)}: {place}  ({took_text})")
    except KeyboardInterrupt:
        if prompts is None:
            raise
        raise InterruptedRunError(
            f"interrupted; {len(made)} of {len(wanted)} clips are there", where=out, todo="go on with --resume"
        ) from None
    unused = maker.unused_clips() if any(clip.seconds is not None for clip in made) else []
    for line in unused_clip_lines(unused):
        note(f"warning: {line}")
    clips = [_described(clip, text) for clip, text in zip(made, wanted, strict=True)]
    document = {
        **({"clips": clips} if prompts is not None else clips[0]),
        "delta": None if maker.delta is None else maker.delta.id,
        "quantized": maker.quantized,
        "unused_clips": [{"expert": role, "site": site, "bin": index} for role, site, index in unused],
        "settings": vars(maker.settings),
    }
    settings = maker.settings
    what = f"{places[0]}" if prompts is None else f"{len(made)} in {out}"
    lines = [
        f"clip        {what}  ({settings.frames} frames of {settings.width}x{settings.height})",
        f"model       {_model(maker)}",
    ]
    emit(document, "\n".join(lines), as_json)


def _make_folder(folder: Path, *, resume: bool) -> None:
    try:
        folder.mkdir(exist_ok=resume)
    except FileExistsError:  # another process made it while the weights were read
        raise _folder_exists(folder) from None


def _folder_exists(folder: Path) -> OutputExistsError:
    todo = "go on with it by --resume, or choose another name" if folder.is_dir() else "choose another name"
    return OutputExistsError("the output is already there", where=folder, todo=todo)


def _places(folder: Path, prompts: Sequence[Prompt], *, resume: bool) -> list[Path]:
    """A file per prompt in a folder that is new, or that `--resume` goes on with."""
    from hfq.convert.prompts import sample_numbers

    if folder.suffix in (".mp4", ".gif"):
        raise UsageError("a clip of every prompt goes into a folder", found=folder)
    if folder.exists() and not (resume and folder.is_dir()):
        raise _folder_exists(folder)
    if not folder.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=folder.parent)
    width = max(3, len(str(len(prompts))))
    names = [
        _name(prompt.id, sample) if prompt.id is not None and _FILE_NAME.fullmatch(prompt.id) else f"{number:0{width}}"
        for number, (prompt, sample) in enumerate(zip(prompts, sample_numbers(prompts), strict=True), start=1)
    ]
    # Compared without case: some file systems do not tell a.mp4 from A.mp4.
    twice = next((name for name, count in Counter(name.lower() for name in names).items() if count > 1), None)
    if twice is not None:
        raise UsageError("two prompts of one name", where="prompt file", found=f"id {twice!r}")
    renamed = [
        f"{prompt.id[:60]!r} ({name}.mp4)"
        for prompt, name in zip(prompts, names, strict=True)
        if prompt.id is not None and not _FILE_NAME.fullmatch(prompt.id)
    ]
    if renamed:
        more = f" and {len(renamed) - 5} more" if len(renamed) > 5 else ""
        note(f"ids that are no file names, and the clips' names instead: {', '.join(renamed[:5])}{more}")
    return [folder / f"{name}.mp4" for name in names]


def _name(prompt_id: str, sample: int) -> str:
    """A clip's name by its prompt's id; further samples of one prompt are numbered from 1."""
    return prompt_id if sample == 0 else f"{prompt_id}-{sample}"


def _described(clip: MadeClip, prompt: Prompt) -> dict[str, Any]:
    return {
        "clip": str(clip.path),
        "prompt": prompt.text,
        "kept": clip.seconds is None,
        "signed": clip.signed,
        "recorded": clip.recorded,
    }


def _model(maker: ClipMaker) -> str:
    if maker.delta is None:
        return "the base"
    counts = ", ".join(f"{count} quantized linears in {role}" for role, count in maker.quantized.items())
    return f"delta:{maker.delta.id[:12]}, {counts}"
