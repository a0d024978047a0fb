"""A delta that is complete where one was to be made: is it the one?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfq.schema.documents import read_document
from hfq.schema.errors import HfqError, OutputExistsError

from .checkpoint import Checkpoint
from .conversion_plan import inputs_of_delta
from .delta import PROVENANCE, REPORT, Delta, load_delta
from .journal import CONVERSION
from .progress import Progress
from .work_folder import clear_finished, first_difference

__all__ = ["finished_delta"]


def finished_delta(destination: Path, checkpoint: Checkpoint, inputs: Mapping[str, Any], progress: Progress) -> Delta:
    """The delta that is there, if it is the one that would be made: the base is read, and nothing is computed.

    Raises:
        OutputExistsError: it is not.
        NonFiniteWeightError, BlobDigestError: the base is not sound, as for a delta that is made.
    """
    there, todo = "the output is already there, and is not what would be made", "choose another name, or remove it"
    try:
        for name, kind in ((REPORT, "report"), (PROVENANCE, "provenance")):
            read_document(destination / name, kind)
        delta = load_delta(destination)
    except HfqError as error:
        raise OutputExistsError(there, where=destination, found=str(error), todo=todo) from None
    try:
        made = inputs_of_delta(delta.document)
        found = first_difference(made, {name: inputs[name] for name in made})
        if found is None:
            scans = {role: expert.scan(progress, hash_files=False) for role, expert in checkpoint.experts.items()}
            roots = {role: scan.run().bf16_root for role, scan in scans.items()}
            found = first_difference({role: delta.root(role) for role in roots}, roots)
        if found is not None:
            raise OutputExistsError(
                there, where=f"{destination}: {found.field}", expected=found.now, found=found.before, todo=todo
            )
        clear_finished(destination, CONVERSION, inputs)
    except BaseException:
        delta.close()
        raise
    progress.note(f"{destination} was complete; nothing was left to do")
    return delta
