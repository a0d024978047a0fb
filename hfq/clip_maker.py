"""A loaded model, alone or under a delta, that makes clips which say what made them.

`convert` runs models and knows no registry, `registry` knows clips and runs no model: this is where they meet.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfq.console import BarProgress, note
from hfq.convert.prompts import Prompt
from hfq.generation_options import settings_from
from hfq.schema.atomic import publish_file
from hfq.schema.errors import UsageError

if TYPE_CHECKING:
    from hfq.convert.generation import Frames
    from hfq.registry.clips.clip_document import ClipDocument
    from hfq.registry.clips.keys import SigningKey

__all__ = ["ClipMaker", "ClipOutput", "MadeClip"]


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """How clips are written: frames per second, enlargement, whether they hold the prompt's text, the key that signs
    them (None: unsigned), whether a registry should remember them, and whether they are some of a folder, whose journal
    then names each before it appears.
    """

    fps: int
    zoom: int
    store_prompt: bool
    key: SigningKey | None
    record: bool
    journal: bool = False


@dataclass(frozen=True, slots=True)
class MadeClip:
    """One clip: its file, what it says of itself, whether it is signed and recorded.

    `seconds` counts the pipeline alone; None for a clip that was there already.
    """

    path: Path
    document: ClipDocument
    seconds: float | None
    signed: bool
    recorded: bool


class ClipMaker:
    """Holds the pipeline, so that a set of prompts reads the weights once."""

    def __init__(self, base: str, delta: str | None, given: dict[str, Any], prompts: list[Prompt]) -> None:
        """Load the model and put the delta on it.

        Args:
            base, delta: MODEL and DELTA arguments.
            given: the options of `generation_options`.
            prompts: all that will be asked for; what one lacks (a first frame) is found before the first clip is made.

        Raises:
            what `load_model`, `open_delta` and `apply` raise, and UsageError for settings that the model cannot run.
        """
        import torch

        from hfq.convert.apply import apply, summary
        from hfq.convert.generation import plan_schedule, prepare_scheduler
        from hfq.convert.pipelines import load_model
        from hfq.convert.prompt_overlap import prompt_line
        from hfq.paths import open_delta

        for prompt in prompts:
            _check_category(prompt)
        self._given = given
        self.delta = None if delta is None else open_delta(delta)
        if self.delta is not None:
            for prompt in prompts:
                flattered = prompt_line(self.delta.document, prompt.text)
                if flattered is not None:
                    note(flattered if len(prompts) == 1 else f"{prompt.label}: {flattered}")
        loaded = self._loaded = load_model(
            base,
            pipeline=given["pipeline"],
            role=given["role"],
            # A delta is put on in main memory first; offloading hooks come after it.
            device="cpu" if self.delta is not None else given["device"],
            offload="none" if self.delta is not None else given["offload"],
            dtype=getattr(torch, given["dtype"]),
            progress=BarProgress(),
            allow_non_finite=given["allow_non_finite"],
        )
        self.settings = settings_from(loaded.defaults, given)
        replaced = (
            {} if self.delta is None else apply(loaded.pipeline, self.delta, allow_non_finite=given["allow_non_finite"])
        )
        if self.delta is not None:
            loaded.offload(given["device"], given["offload"])
        self.quantized = summary(replaced)
        loaded.plan.sizes.check(self.settings)
        prepare_scheduler(loaded.pipeline, self.settings)
        _, schedules = plan_schedule(loaded.pipeline.scheduler, self.settings, list(loaded.transformers))
        self._expert_steps = {role: len({call.step for call in schedule.calls}) for role, schedule in schedules.items()}
        loaded.pipeline.set_progress_bar_config(disable=None, leave=False)
        for prompt in prompts:
            self._frames_given(prompt)

    def make(self, prompt: Prompt, destination: Path, output: ClipOutput, sample: int = 0) -> MadeClip:
        """Generate one clip, write it, and record it if a registry can.

        Args:
            sample: added to the seed: how many clips of this prompt there are before it.

        Raises:
            what `run_pipeline`, `write_clip`, `stamp_clip` and `Registry.record_clip` raise.
        """
        from hfq.convert.generation import run_pipeline
        from hfq.convert.video import enlarge

        given = self._frames_given(prompt)
        started = time.perf_counter()
        settings = replace(self.settings, seed=self.settings.seed + sample)
        frames = run_pipeline(self._loaded.pipeline, prompt.text, settings, image=given.first, last_image=given.last)
        seconds = time.perf_counter() - started
        assert frames is not None
        document = self._document(prompt, output, given, sample)
        manifest = _write(destination, enlarge(frames, output.zoom), document, output)
        recorded = output.record and _record(destination, document, manifest)
        return MadeClip(destination, document, seconds, manifest is not None, recorded)

    def keep(self, prompt: Prompt, destination: Path, output: ClipOutput, sample: int = 0) -> MadeClip:
        """Take a clip that is there for the one that `make` would make. One that no registry recorded is recorded now:
        the run may have been killed in between.

        Raises:
            what `keep_clip` and `Registry.record_clip` raise.
        """
        from hfq.registry import open_registry
        from hfq.registry.clips.journal import Picture, keep_clip

        document, registry = self._document(prompt, output, self._frames_given(prompt), sample), open_registry()
        width, height = (size * output.zoom for size in (self.settings.width, self.settings.height))
        # As it is written: yuv420p halves the colour planes, so that an odd size gets one row or column more.
        picture = Picture(width + width % 2, height + height % 2, self.settings.frames, Fraction(output.fps))

        def is_registered(file_sha256: str) -> bool:
            return document.variant in registry.variants_of_file(file_sha256)

        kept = keep_clip(destination, document, picture, is_registered)
        # Also one that is registered: another run may have been killed before it could say that it was signed.
        recorded = output.record and _record(destination, kept.document, kept.manifest)
        recorded = recorded or is_registered(kept.file_sha256)
        return MadeClip(destination, kept.document, None, kept.manifest is not None, recorded)

    def _document(self, prompt: Prompt, output: ClipOutput, given: Frames, sample: int) -> ClipDocument:
        from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256

        roots = {role: identity.bf16_root for role, identity in self._loaded.identities.items()}
        if self.delta is not None:
            roots = {role: self.delta.root(role) for role in self.delta.roles}
        settings = {
            name: value for name, value in vars(self.settings).items() if name not in ("seed", "negative_prompt")
        }
        # Texts of prompts are kept back unless they are asked for; a hash tells two settings apart as well.
        negative = self.settings.negative_prompt
        settings["negative_prompt"] = f"sha256:{prompt_sha256(negative)}" if negative else ""
        settings["scheduler"] = type(self._loaded.pipeline.scheduler).__name__
        settings["dtype"] = self._given["dtype"]
        for name, digest in (("first_frame", given.first_sha256), ("last_frame", given.last_sha256)):
            if digest is not None:
                settings[f"{name}_sha256"] = digest
        return ClipDocument(
            delta=None if self.delta is None else self.delta.id,
            base=roots,
            prompt_sha256=prompt_sha256(prompt.text),
            prompt=prompt.text if output.store_prompt else None,
            seed=self.settings.seed + sample,
            settings=settings,
            expert_steps=self._expert_steps,
            category=prompt.category,
        )

    def unused_clips(self) -> list[tuple[str, str, int]]:
        """Clip entries of the delta that no forward has consulted yet; see `convert.clip.unused_clips`."""
        from hfq.convert.clip import unused_clips

        return [] if self.delta is None else unused_clips(self._loaded.pipeline)

    def _frames_given(self, prompt: Prompt) -> Frames:
        from hfq.convert.generation import load_frames

        return load_frames(
            self._loaded.architecture.model_type,
            self._loaded.takes_image,
            prompt.image or self._given["image"],
            prompt.last_image or self._given["last_image"],
            self.settings,
            prompt.label,
        )


def _check_category(prompt: Prompt) -> None:
    """Before any work: a clip that cannot say its category would be generated in vain."""
    from hfq.registry.clips.clip_document import MAX_CATEGORY

    if prompt.category is not None and len(prompt.category) > MAX_CATEGORY:
        raise UsageError(
            "a category that is too long for a clip", where=prompt.label, expected=f"at most {MAX_CATEGORY} characters",
            found=len(prompt.category),
        )  # fmt: skip


def _write(destination: Path, frames: Any, made_by: ClipDocument, output: ClipOutput) -> bytes | None:
    """Write the clip, with what it says of itself where the container can hold that; returns the signed manifest."""
    from hfq.convert.video import write_clip
    from hfq.registry.clips.journal import journal_clip
    from hfq.registry.clips.stamp import stamp_clip
    from hfq.registry.clips.stream import open_clip

    if destination.suffix != ".mp4":
        write_clip(destination, frames, output.fps)
        return None
    with tempfile.TemporaryDirectory(prefix=".hfq-clip-", dir=destination.parent) as folder:
        plain = Path(folder) / "clip.mp4"
        write_clip(plain, frames, output.fps)
        stamped = stamp_clip(plain, Path(folder) / "stamped.mp4", made_by, output.key)
        if output.journal:
            with open_clip(stamped.path) as clip:
                journal_clip(destination.parent, destination.name, clip.file_sha256())
        publish_file(stamped.path, destination)
        return stamped.manifest


def _record(destination: Path, made_by: ClipDocument, manifest: bytes | None) -> bool:
    """Record the clip if a registry can; says why when it cannot."""
    from hfq.registry import open_registry
    from hfq.schema.errors import RegistryError, UnknownIdError

    registry = open_registry()
    if destination.suffix != ".mp4":
        note("not recorded: a GIF says nothing of itself and cannot be audited; write an .mp4")
    elif registry.status().state in ("absent", "empty"):
        note("not recorded: there is no registry yet; `hfq register DELTA` makes one")
    else:
        try:
            registry.record_clip(destination, made_by, manifest=manifest, signed=manifest is not None)
        except UnknownIdError:
            note("not recorded: the delta is not registered; `hfq register DELTA`, then `hfq stamp`")
            return False
        except RegistryError:
            note(f"{destination} is there, and not recorded")
            raise
        return True
    return False
