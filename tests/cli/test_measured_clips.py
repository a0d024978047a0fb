"""`hfq score measure`: whose the clips are, and what they say of themselves."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
from factory import make_delta

import hfq
from hfq.cli import run
from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256
from hfq.registry.clips.tag import write_tag

Capture = pytest.CaptureFixture[str]
SETTINGS = {"steps": 6, "guidance": 3.0, "shift": 5.0, "frames": 3, "height": 32, "width": 32, "scheduler": "unipc"}
POLICY = """
schema = "hfq.policy/1"
name = "mine"

[[workload]]
name = "still"
suitability = "high"
control = "a person looks"
prefer = "cheapest"
escalate_to = "base"
min_videos = 2
min_prompts = 2
min_paired_share = 1.0
held_out = false
required_categories = []
content_class = "required"
min_category_videos = 2
review_in_use = 0.5

[[workload.gate]]
metric = "temporal_flicker"
suites = ["hfq"]
min_retained = 0.5
each_category = true
source = "ours"
"""


def typed(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def clip(path: Path, seed: int, made_by: ClipDocument, noise: int = 0) -> None:
    patches = np.random.default_rng(seed).integers(60, 180, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    moved = np.random.default_rng(99).integers(0, noise + 1, (32, 32, 3))
    plain = path.with_name(f"plain-{path.name}")
    with av.open(str(plain), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
        stream.options = {"qp": "0"}
        for index in range(3):
            picture = (np.roll(patches, index, axis=1) + moved).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    write_tag(plain, path, made_by)
    plain.unlink()


def remux(source: Path, out: Path) -> None:
    """The same packets in another file, without any tag."""
    with av.open(str(source)) as found, av.open(str(out), "w") as copy:
        stream = copy.add_stream_from_template(found.streams.video[0])
        for packet in found.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    make_delta(tmp_path / "good", seed="good")
    hfq.open_registry().register(tmp_path / "good", aliases=["m@good"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


def made_by(home: Path, index: int, *, of_base: bool, **changes: Any) -> ClipDocument:
    record = hfq.open_registry().get("m@good")
    roots = {expert.role: expert.bf16_root for expert in record.base.experts}
    how: dict[str, Any] = {"seed": index, "settings": SETTINGS, "category": "people"} | changes
    return ClipDocument(None if of_base else record.id, roots, prompt_sha256(f"prompt {2 + index}"), **how)


@pytest.fixture
def folders(home: Path) -> Path:
    """Two clips of the delta in `ours` and two of the base in `base`, all of them registered."""
    for folder in ("ours", "base"):
        (home / folder).mkdir()
        for index in range(2):
            document = made_by(home, index, of_base=folder == "base")
            clip(home / folder / f"c{index}.mp4", index, document, 0 if folder == "base" else 20)
            hfq.open_registry().record_clip(home / folder / f"c{index}.mp4", document)
    return home


MEASURE = ("score", "measure", "m@good", "--clips", "ours", "--reference", "base")
GATE = ("gate", "m@good", "--workload", "still", "--policy", "policy.toml", "--content-class", "people")


def test_clips_are_measured_with_what_they_say_of_themselves(home: Path, capsys: Capture) -> None:
    record = hfq.open_registry().get("m@good")
    roots = {expert.role: expert.bf16_root for expert in record.base.experts}
    for folder, delta, noise in (("ours", record.id, 20), ("base", None, 0)):
        (home / folder).mkdir()
        for index in range(2 if delta else 3):
            made_by = ClipDocument(delta, roots, prompt_sha256(f"prompt {2 + index}"), seed=index,
                                   settings={"steps": 6, "guidance_low": 3.0, "odd": index})  # fmt: skip
            clip(home / folder / f"c{index}.mp4", index, made_by, noise)
    code, found, _ = typed(capsys, "score", "measure", "m@good", "--clips", "ours", "--reference", "base")
    assert code == 0
    ours = {one["metric"]: one for one in found["variant"]["scores"]}
    assert set(ours) == {"psnr", "ssim", "temporal_flicker", "frame_to_frame_ssim", "first_frame_ssim"}
    noise = np.random.default_rng(99).integers(0, 21, (32, 32, 3))
    assert ours["psnr"]["mean"] == pytest.approx(10 * np.log10(255**2 / np.mean(np.square(noise))))
    assert ours["psnr"]["metric_suite"] == "hfq"
    assert ours["psnr"]["settings"] == {"steps": 6, "guidance_2": 3.0}
    assert ours["psnr"]["overlap"] == "of 2 prompts 1 are in the calibration and 0 in the selection"
    # The base's clip that the variant lacks is not forgotten: it counts when a gate asks for the paired share.
    assert {one["metric"]: one["videos"] for one in found["base"]["scores"]} == dict.fromkeys(
        set(ours) - {"psnr", "ssim"}, 3
    )
    code, found, _ = typed(capsys, "compare", "m@good", f"base:{record.base.id}")
    assert (code, len(found["metrics"]), len(found["left_out"])) == (0, 3, 2)
    assert [one["only_second"] for one in found["metrics"]] == [["c2"]] * 3
    code, found, _ = typed(capsys, "score", "measure", "m@good", "--clips", "base", "--reference", "ours")
    assert (code, found["error"]["code"]) == (3, "contradicted-claim")


def test_a_category_of_the_prompt_reaches_the_gate(folders: Path, capsys: Capture) -> None:
    code, found, err = typed(capsys, *MEASURE)
    assert code == 0
    assert "WARNING" not in err
    expected = {"clips": 2, "claimed": 2, "registered": 2, "unknown": 0, "identical": 0}
    assert [one["clips"] for side in ("variant", "base") for one in found[side]["scores"]] == [expected] * 8
    code, found, _ = typed(capsys, *GATE)
    assert (code, found["reasons"], found["notes"]) == (0, [], [])
    assert any("in people: 2 videos, 2 needed" in check["text"] for check in found["checks"])
    assert typed(capsys, *GATE[:-1], "places")[0] == 4


def test_a_prompt_file_goes_before_the_category_of_the_clips(folders: Path, capsys: Capture) -> None:
    listed = [{"prompt_en": f"prompt {2 + n}", "video_list": [f"c{n}.mp4"], "category": "places"} for n in range(2)]
    (folders / "info.json").write_text(json.dumps(listed))
    assert typed(capsys, *MEASURE, "--full-info", "info.json")[0] == 0
    assert typed(capsys, *GATE[:-1], "places")[0] == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_the_bases_own_clips_are_not_the_variants(folders: Path, capsys: Capture, suffix: str) -> None:
    """A copy without its tag, in any container."""
    (folders / "ours" / "c1.mp4").unlink()
    remux(folders / "base" / "c1.mp4", folders / "ours" / f"c1.{suffix}")
    code, found, _ = typed(capsys, *MEASURE)
    assert (code, found["error"]["code"], found["error"]["where"]) == (3, "contradicted-claim", f"ours/c1.{suffix}")
    record = hfq.open_registry().get("m@good")
    assert found["error"]["expected"] == f"delta:{record.id[:12]}"
    assert found["error"]["found"] == f"base:{record.base.id[:12]}"
    assert typed(capsys, "show", "m@good")[1]["scores"] == []


def test_a_copied_tag_does_not_make_the_bases_clip_the_variants(folders: Path, capsys: Capture) -> None:
    (folders / "ours" / "c1.mp4").unlink()
    write_tag(folders / "base" / "c1.mp4", folders / "ours" / "c1.mp4", made_by(folders, 1, of_base=False))
    code, found, _ = typed(capsys, *MEASURE)
    assert (code, found["error"]["code"], found["error"]["where"]) == (3, "contradicted-claim", "ours/c1.mp4")


def test_the_variants_clips_are_not_the_bases(folders: Path, capsys: Capture) -> None:
    (folders / "base" / "c0.mp4").unlink()
    write_tag(folders / "ours" / "c0.mp4", folders / "base" / "c0.mp4", made_by(folders, 0, of_base=True))
    code, found, _ = typed(capsys, *MEASURE)
    assert (code, found["error"]["code"], found["error"]["where"]) == (3, "contradicted-claim", "base/c0.mp4")


def test_clips_that_nothing_speaks_for_are_counted_and_said_loudly(home: Path, capsys: Capture) -> None:
    for folder in ("ours", "base", "plain"):
        (home / folder).mkdir()
    for index in range(2):
        clip(home / "base" / f"c{index}.mp4", index, made_by(home, index, of_base=True))
        clip(home / "plain" / f"c{index}.mp4", index, made_by(home, index, of_base=False), 20 * index)
        remux(home / "plain" / f"c{index}.mp4", home / "ours" / f"c{index}.mp4")
    code, found, err = typed(capsys, *MEASURE)
    assert code == 0
    assert "ours: nothing says who made 2 of 2 clips" in err
    assert "ours: 1 of 2 clips have exactly the pixels of their reference" in err
    psnr = next(one for one in found["variant"]["scores"] if one["metric"] == "psnr")
    assert psnr["clips"] == {"clips": 2, "claimed": 0, "registered": 0, "unknown": 2, "identical": 1}
    assert psnr["settings"] == {}
    assert found["base"]["scores"][0]["clips"]["claimed"] == 2
    line = "of 2 clips 0 name their maker and 0 are registered; NOTHING SAYS WHO MADE 2"
    capsys.readouterr()
    assert run(["show", "m@good"]) == 0
    assert f"clips        {line}; 1 HAVE EXACTLY THE REFERENCE'S PIXELS" in capsys.readouterr().out
    code, found, _ = typed(capsys, *GATE)
    assert code == 4  # what the base's clips say of their settings, these do not
    assert f"hfq temporal_flicker, the variant: {line}; 1 HAVE EXACTLY THE REFERENCE'S PIXELS" in found["notes"]
    assert "hfq temporal_flicker, the base: of 2 clips 2 name their maker and 0 are registered" in found["notes"]
    # Whoever says the settings answers for them, and clips of the base show nothing of the variant.
    said = [part for name, value in SETTINGS.items() for part in ("--setting", f"{name}={value}")]
    assert typed(capsys, *MEASURE, *said)[0] == 0
    code, found, _ = typed(capsys, *GATE)
    assert [reason for reason in found["reasons"] if "settings" in reason] == []
    (copied,) = [reason for reason in found["reasons"] if "pixels" in reason]
    assert copied.startswith(
        "hfq temporal_flicker: 1 of 2 clips have exactly the reference's pixels (c0) and show nothing"
    )
    # Clips of its own pass, and nobody overlooks whose word that is.
    clip(home / "plain" / "c2.mp4", 0, made_by(home, 0, of_base=False), 5)
    remux(home / "plain" / "c2.mp4", home / "ours" / "c0.mp4")
    assert typed(capsys, *MEASURE, *said)[0] == 0
    code, found, _ = typed(capsys, *GATE)
    assert found["clips"] == found["notes"]
    (home / "policy.toml").write_text(
        POLICY.replace('required"', 'optional"').replace("each_category = true", "each_category = false")
    )
    assert run(["route", "--workload", "still", "--policy", "policy.toml"]) == 0
    assert f"note       hfq temporal_flicker, the variant: {line}" in capsys.readouterr().out
    compared = typed(capsys, "compare", "m@good", f"base:{found['base']}", "--anyway")[1]
    assert any(line in one for one in compared["clips"])


def test_a_setting_that_one_clip_does_not_say_is_not_recorded(folders: Path, capsys: Capture) -> None:
    (folders / "ours" / "c1.mp4").replace(folders / "tagged.mp4")
    remux(folders / "tagged.mp4", folders / "ours" / "c1.mp4")
    code, found, _ = typed(capsys, *MEASURE)
    assert code == 0
    score = found["variant"]["scores"][0]
    # Its frames are registered as the variant's: that is known, how it was made is not.
    assert score["clips"] == {"clips": 2, "claimed": 1, "registered": 2, "unknown": 0, "identical": 0}
    assert score["settings"] == {}


def test_scores_of_measured_clips_keep_their_id(folders: Path, capsys: Capture) -> None:
    assert typed(capsys, *MEASURE)[1]["variant"]["new"] == 5
    assert typed(capsys, *MEASURE)[1]["variant"]["new"] == 0
    registry = hfq.open_registry()
    assert [finding for finding in registry.check() if "score" in finding.code] == []
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("UPDATE score_clips SET registered = registered - 1")
        connection.commit()
    assert {finding.code for finding in registry.check() if "score" in finding.code} == {"score-changed"}
