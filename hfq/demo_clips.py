"""The demo's second half: clips of a base and of a delta, who made them, and whether they may be used."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hfq.demo_steps import Steps

__all__ = ["CLIP_PROMPTS", "audit_clips", "gate_clips", "make_clips", "psnr_text"]

# Not among the calibration prompts: clips of those would flatter the recipe.
CLIP_PROMPTS: Final = (
    "a blue square moving right over a black background",
    "a red triangle moving up over a gray background",
    "a yellow circle moving left over a black background",
    "a green cross moving down over a white background",
)
CLIP_SEED: Final = 7
ZOOM: Final = 8
FPS: Final = 6
_HALF: Final = (96, 96)


def make_clips(steps: Steps) -> dict[str, Any]:
    """The same prompts from the base and from the delta; returns what the summary says of them."""
    from hfq.convert.video import psnr_db, side_by_side, write_clip
    from hfq.registry.scores.frames import read_frames

    Path("clips.txt").write_text("\n".join(CLIP_PROMPTS) + "\n", encoding="utf-8")
    if find_spec("c2pa") is not None:
        steps.step("A key to sign clips with", "keys", "init")
        steps.result("a local authority and a signing key, in the demo's folder")
    common = ("--prompts", "clips.txt", "--seed", str(CLIP_SEED), "--zoom", str(ZOOM), "--fps", str(FPS))
    steps.step("Clips of four prompts from the base ...", "generate", "--base", "tiny-wan", *common, "-o", "bf16")
    steps.result(f"bf16/001.mp4 to bf16/{len(CLIP_PROMPTS):03}.mp4")
    made = steps.step(
        "... and from the delta on top of it, the same prompts and seed",
        "generate", "--base", "tiny-wan", "--delta", "tiny@demo", *common, "-o", "hif4",
    )  # fmt: skip
    names = [f"{number:03}.mp4" for number in range(1, len(CLIP_PROMPTS) + 1)]
    pairs = {name: (read_frames(Path("bf16") / name), read_frames(Path("hif4") / name)) for name in names}
    bf16, hif4 = pairs[names[0]]
    write_clip(Path("side-by-side.gif"), side_by_side([("BF16", bf16), ("HiFloat4 W4A4", hif4)]), FPS)
    psnr = {name: psnr_db(left, right) for name, (left, right) in pairs.items()}
    document = {
        "psnr_db": sum(psnr.values()) / len(psnr),
        "psnr_db_of_clips": psnr,
        "side_by_side": "side-by-side.gif",
    }
    signed = "signed and recorded" if made["clips"][0]["signed"] else "recorded"
    steps.result(f"hif4/{names[0]} to hif4/{names[-1]}, {signed}; {psnr_text(document)} to the BF16 clips")
    return document


def psnr_text(document: Mapping[str, Any]) -> str:
    """PSNR of all clips: the mean, and from the worst to the best."""
    found = document["psnr_db_of_clips"].values()
    return f"{document['psnr_db']:.1f} dB PSNR on average ({min(found):.1f} to {max(found):.1f})"


def audit_clips(steps: Steps) -> dict[str, str]:
    """Stamp a clip, take everything away that a clip says of itself, and ask who made it; returns file -> verdict."""
    from hfq.convert.video import write_clip
    from hfq.registry.scores.frames import read_frames

    # What another program would hand over: the delta's frames, encoded by somebody who knows nothing of hfq.
    write_clip(Path("elsewhere.mp4"), read_frames(Path("hif4/002.mp4")), 2 * FPS)
    steps.step(
        "A clip that another program made is stamped: a copy says which variant made it",
        "stamp", "elsewhere.mp4", "--variant", "tiny@demo", "--prompt", CLIP_PROMPTS[1], "--seed", str(CLIP_SEED),
        "-o", "stamped.mp4",
    )  # fmt: skip
    steps.result("stamped.mp4, the same frames bit for bit; recorded")
    found = {}
    steps.title("Who made it?")
    found["stamped.mp4"] = _audit(steps, "stamped.mp4", expected=0)
    steps.title("Without metadata: nothing in the file says anything any more")
    steps.beside("ffmpeg -i stamped.mp4 -map_metadata -1 -c copy stripped.mp4")
    _copy_packets(Path("stamped.mp4"), Path("stripped.mp4"))
    found["stripped.mp4"] = _audit(steps, "stripped.mp4", expected=0)
    steps.title("Re-encoded at half the size: nothing is proof, and nothing is named")
    steps.beside(f"ffmpeg -i stamped.mp4 -map_metadata -1 -vf scale={_HALF[0]}:{_HALF[1]} -crf 28 platform.mp4")
    _encode_again(Path("stamped.mp4"), Path("platform.mp4"))
    found["platform.mp4"] = _audit(steps, "platform.mp4", expected=5)
    return found


def gate_clips(steps: Steps) -> dict[str, bool]:
    """Measure the clips and ask for two workloads; returns workload -> passed."""
    shutil.copyfile(Path(__file__).with_name("demo_policy.toml"), "policy.toml")
    measured = steps.step(
        "May it be used? Measure its clips against the base's ...",
        "score", "measure", "tiny@demo", "--clips", "hif4", "--reference", "bf16",
    )  # fmt: skip
    steps.result(", ".join(f"{one['metric']} {one['mean']:.3f}" for one in measured["variant"]["scores"]))
    steps.title("... and ask a policy, for two workloads")
    passed = {}
    for workload, exit_code in (("sketches", 0), ("product-shots", 4)):
        found = steps.command(
            "gate", "tiny@demo", "--workload", workload, "--policy", "policy.toml", expected=exit_code
        )
        passed[workload] = found["passed"]
        told = found["checks"] if found["passed"] else [check for check in found["checks"] if not check["passed"]]
        verdict = f"{'passes' if found['passed'] else 'fails'}: {told[-1]['text']}"
        steps.result(f"{verdict}  (exit code {exit_code})")
    return passed


def _audit(steps: Steps, clip: str, *, expected: int) -> str:
    found = steps.command("audit", clip, expected=expected)
    for rung in found["rungs"]:
        steps.result(f"{rung['rung']:<13} {rung['state']:<10} {rung['detail']}")
    named = found["variant"]
    said = (
        _short(named)
        if named
        else f"no name; candidates {', '.join(_short(c['variant']) for c in found['candidates'])}"
    )
    steps.result(f"{found['verdict']}: {said}  (exit code {expected})")
    return str(found["verdict"])


def _short(variant: dict[str, str]) -> str:
    return f"{variant['kind']}:{variant['id'][:12]}"


def _copy_packets(source: Path, out: Path) -> None:
    """The video packets alone, as `ffmpeg -map_metadata -1 -c copy` does it."""
    import av

    from hfq.registry.clips.stream import open_clip

    with open_clip(source) as clip, clip.demuxer() as found, av.open(str(out), "w") as copy:
        stream = copy.add_stream_from_template(found.streams.video[0])
        for packet in found.demux(video=0):
            if packet.size:  # PyAV ends a stream with an empty packet
                packet.stream = stream
                copy.mux(packet)


def _encode_again(source: Path, out: Path) -> None:
    """H.264 at CRF 28 and half the size, without metadata: what a video platform makes of a clip."""
    import av

    from hfq.registry.clips.stream import open_clip

    with open_clip(source) as clip, av.open(str(out), "w") as copy:
        stream: Any = copy.add_stream("libx264", rate=Fraction(2 * FPS), options={"crf": "28"})
        stream.width, stream.height, stream.pix_fmt = *_HALF, "yuv420p"
        for frame in clip.frames():
            copy.mux(stream.encode(frame.reformat(*_HALF, format="yuv420p")))
        copy.mux(stream.encode())
