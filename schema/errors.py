"""Every failure a user can meet, one class each.

An error says what went wrong, where, what was expected and found, and what to do next, on one line. `code` is stable
and appears in `--json`; `exit_code` follows the table in the README:

1 malformed · 2 bad arguments · 3 contradiction · 4 gate failed · 5 unknown or ambiguous · 130 interrupted.
"""

from __future__ import annotations

from typing import Any, ClassVar


def _one_line(text: object, limit: int = 400) -> str:
    """Text from a file may hold control characters or megabytes; a message holds neither."""
    line = "".join(ch if ch.isprintable() else "�" for ch in str(text).replace("\n", " "))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class HfqError(Exception):
    """Base of all errors that reach a user.

    Args:
        what: one clause, no final stop.
        where: file, tensor or field.
        expected: what would have been right.
        found: what was there.
        todo: the next command or action.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        todo: str | None = None,
    ) -> None:
        self.what = _one_line(what)
        self.where = None if where is None else _one_line(where)
        self.expected = None if expected is None else _one_line(expected)
        self.found = None if found is None else _one_line(found)
        self.todo = None if todo is None else _one_line(todo)
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.found is not None:
            text += f"; found {self.found}" if self.expected is None else f", found {self.found}"
        if self.todo:
            text += f"; {self.todo}"
        return text

    def to_json(self) -> dict[str, Any]:
        """The error as the `error` member of a `--json` document."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": str(self),
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "todo": self.todo,
        }


# --- 1: malformed, truncated, duplicate, non-finite, unreadable, unknown version -------------------------------------


class UnreadableFileError(HfqError):
    """A file exists and cannot be read (permission, not a regular file, I/O error)."""

    code = "unreadable"


class MalformedFileError(HfqError):
    """A file is not what its name or place says."""

    code = "malformed"


class TruncatedFileError(MalformedFileError):
    """A file ends before its own header says it does."""

    code = "truncated"


class TrailingBytesError(MalformedFileError):
    """A file goes on after its own header says it ends."""

    code = "trailing-bytes"


class DuplicateKeyError(MalformedFileError):
    """A name occurs twice: in a JSON object, in a safetensors header or across shards."""

    code = "duplicate-key"


class SchemaViolationError(MalformedFileError):
    """A document does not follow its JSON Schema: unknown, missing or ill-typed field."""

    code = "schema-violation"


class TooLargeError(MalformedFileError):
    """A document or header is larger than any honest one."""

    code = "too-large"


class UnknownSchemaVersionError(MalformedFileError):
    """A document of a major version that this release cannot read."""

    code = "unknown-schema-version"


class InconsistentDeltaError(MalformedFileError):
    """A delta whose parts contradict each other, although every hash in it is right."""

    code = "inconsistent"


class UnknownOpError(MalformedFileError):
    """A node of an ONNX graph names an op that its domain does not have."""

    code = "unknown-op"


class OpAttributeError(MalformedFileError):
    """A node of an ONNX graph lacks an attribute of its op, or has one that is unknown or out of range."""

    code = "op-attribute"


class MissingBodyError(MalformedFileError):
    """An ONNX file calls an op and does not carry its function body."""

    code = "missing-body"


class MixedBodiesError(MalformedFileError):
    """Nodes of one op in one ONNX model need different function bodies."""

    code = "mixed-bodies"


class MalformedGraphError(MalformedFileError):
    """An ONNX file that is no graph as `hfq export` makes them: no protobuf, refused by the checker, odd parts."""

    code = "malformed-graph"


class ExternalDataError(MalformedFileError):
    """Weights of an ONNX graph that lie outside its folder, behind a link, or not where the graph says."""

    code = "external-data"


class GraphVersionError(MalformedFileError):
    """An ONNX graph of an IR or opset version that this release does not read."""

    code = "graph-version"


class GraphMetadataError(MalformedFileError):
    """An ONNX graph that does not say, or says in a wrong form, which delta it was made from."""

    code = "graph-metadata"


class GraphRunError(MalformedFileError):
    """An ONNX graph that a runtime does not load or run."""

    code = "graph-run"


class NotAClipError(MalformedFileError):
    """A file that is no video container which this release opens (MP4, MOV, Matroska, WebM)."""

    code = "not-a-clip"


class ClipStreamError(MalformedFileError):
    """A video container without one video stream that can be decoded to its end."""

    code = "clip-stream"


class ClipDocumentError(MalformedFileError):
    """What a clip says of its origin contradicts itself: a prompt that is not the one of its hash."""

    code = "clip-document"


class RemuxError(HfqError):
    """The packets of a clip cannot be copied into a new file of the same kind without a change."""

    code = "remux"


class KeyFileError(MalformedFileError):
    """A private key or certificate that cannot be read, is of an unfit kind, or does not fit its counterpart."""

    code = "key-file"


class SigningError(HfqError):
    """The C2PA library refuses to sign the clip with this key."""

    code = "signing"


class UnsupportedDtypeError(HfqError):
    """A tensor's dtype is not one a base may have (F32, BF16, F16)."""

    code = "unsupported-dtype"


class UnsupportedModelError(HfqError):
    """A checkpoint of a kind that is recognised and not supported (Animate, S2V, fp8_scaled, GGUF)."""

    code = "unsupported-model"


class UnknownLayoutError(HfqError):
    """Tensor names that belong to no known Wan layout."""

    code = "unknown-layout"


class MissingTensorError(HfqError):
    """A tensor that the model or the document requires is absent."""

    code = "missing-tensor"


class UnexpectedTensorError(HfqError):
    """A tensor that nothing consumes."""

    code = "unexpected-tensor"


class ShapeMismatchError(HfqError):
    """A tensor whose shape contradicts the model or the document."""

    code = "shape-mismatch"


class ConfigMismatchError(MalformedFileError):
    """A config.json that describes another model than the tensors beside it."""

    code = "config-mismatch"


class IndexMismatchError(MalformedFileError):
    """A safetensors index that places tensors or files where they are not."""

    code = "index-mismatch"


class NonFiniteWeightError(HfqError):
    """NaN or infinity in a weight that would be quantized."""

    code = "non-finite"


class MaskValueError(MalformedFileError):
    """A channel mask in a delta that holds zero, a negative, a subnormal, an infinity or NaN."""

    code = "mask-value"


class NonFiniteActivationError(HfqError):
    """NaN or infinity in an activation during calibration."""

    code = "non-finite-activation"


# --- 2: bad arguments, missing path, role or calibration, existing output --------------------------------------------


class UsageError(HfqError):
    """Arguments that contradict each other or mean nothing."""

    code = "usage"
    exit_code = 2


class MissingPathError(HfqError):
    """A path that does not exist."""

    code = "missing-path"
    exit_code = 2


class OutputExistsError(HfqError):
    """The output is already there; nothing is overwritten."""

    code = "output-exists"
    exit_code = 2


class MissingRoleError(HfqError):
    """A bare file fits more than one expert and nothing says which it is."""

    code = "missing-role"
    exit_code = 2


class MissingCalibrationError(HfqError):
    """The recipe needs statistics and no calibration was given."""

    code = "missing-calibration"
    exit_code = 2


class MissingAnalysisError(HfqError):
    """The recipe selects blocks by a score, and no analysis was given, or one without that expert."""

    code = "missing-analysis"
    exit_code = 2


class MissingPipelineError(HfqError):
    """A bare checkpoint has no text encoder, VAE or scheduler of its own."""

    code = "missing-pipeline"
    exit_code = 2


class MissingDependencyError(HfqError):
    """An optional package is needed and not installed."""

    code = "missing-dependency"
    exit_code = 2


class MissingKeyError(HfqError):
    """No key pair for signing clips has been made yet."""

    code = "missing-key"
    exit_code = 2


class RecipeError(HfqError):
    """A recipe that cannot mean what it says."""

    code = "recipe"
    exit_code = 2


class UnmatchedRuleError(RecipeError):
    """A routing rule that matches no site."""

    code = "unmatched-rule"


class UnroutedSiteError(RecipeError):
    """A site that no routing rule decides."""

    code = "unrouted-site"


class StageOrderError(RecipeError):
    """Stages in an order that means nothing, or one kind twice for the same linear."""

    code = "stage-order"


class StageFormatError(RecipeError):
    """A stage that the recipe's number formats cannot do."""

    code = "stage-format"


class TooFewRowsError(HfqError):
    """The calibration kept too few input rows for what a stage computes from them."""

    code = "too-few-rows"
    exit_code = 2


class HessianError(HfqError):
    """The covariance of the kept inputs cannot be factored, however much it is damped."""

    code = "hessian"


class CodesError(MalformedFileError):
    """Stored weight codes that do not unpack to the codes of their linear."""

    code = "codes"


class CalibrationRangeError(HfqError):
    """The calibration holds too little to answer: a percentile in the bottom bin, too few samples, too few rows."""

    code = "calibration-range"
    exit_code = 2


class CalibrationMergeError(HfqError):
    """Parts that were not made with the same settings cannot become one calibration."""

    code = "calibration-merge"
    exit_code = 2


class ResumeMismatchError(HfqError):
    """The unfinished output was started with other inputs."""

    code = "resume-mismatch"
    exit_code = 2


class UnknownWordError(HfqError):
    """A prompt for the tiny model with a word outside its vocabulary."""

    code = "unknown-word"
    exit_code = 2


# --- 3: wrong base or role, any digest mismatch, contradicted claim --------------------------------------------------


class WrongBaseError(HfqError):
    """The checkpoint is not the one that the delta is bound to."""

    code = "wrong-base"
    exit_code = 3


class WrongRoleError(HfqError):
    """The checkpoint is known, but under another role."""

    code = "wrong-role"
    exit_code = 3


class DigestMismatchError(HfqError):
    """Bytes whose digest is not the recorded one."""

    code = "digest-mismatch"
    exit_code = 3


class WrongIdError(DigestMismatchError):
    """A document whose content does not hash to its own id: it was edited."""

    code = "wrong-id"


class ContradictedClaimError(HfqError):
    """Somebody says that a variant made a clip, and the registry knows that another did."""

    code = "contradicted-claim"
    exit_code = 3


class CalibrationBaseError(HfqError):
    """A calibration that was made with another model."""

    code = "calibration-base"
    exit_code = 3


class AnalysisBaseError(HfqError):
    """An analysis that was made with another model."""

    code = "analysis-base"
    exit_code = 3


class GraphOriginError(HfqError):
    """An ONNX graph of another delta, base, expert or part of a model."""

    code = "graph-origin"
    exit_code = 3


class GraphPayloadError(HfqError):
    """An ONNX graph whose weights or attributes are not the delta's."""

    code = "graph-payload"
    exit_code = 3


class GraphNumericsError(HfqError):
    """An ONNX graph that computes something else than the delta's model."""

    code = "graph-numerics"
    exit_code = 3


# --- 4: gate failed · 5: unknown or ambiguous ------------------------------------------------------------------------


class UnknownIdError(HfqError):
    """An id, prefix or alias that the registry does not know."""

    code = "unknown-id"
    exit_code = 5


class AmbiguousIdError(HfqError):
    """A prefix that fits more than one entry."""

    code = "ambiguous-id"
    exit_code = 5


# --- registry --------------------------------------------------------------------------------------------------------


class RegistryError(HfqError):
    """The registry's database cannot be used as it is."""

    code = "registry"


class RegistryVersionError(RegistryError):
    """The registry's database is of another revision than this release."""

    code = "registry-version"


class NotARegistryError(RegistryError):
    """The file is no registry: not SQLite, or another program's database."""

    code = "not-a-registry"


class RegistryDamagedError(RegistryError):
    """The registry's file was a database and is one no longer: pages of it are overwritten or missing."""

    code = "registry-damaged"


class RegistryBusyError(RegistryError):
    """Another process held the registry's lock for longer than this one waits."""

    code = "registry-busy"


class RegistryReadOnlyError(RegistryError):
    """The registry's file or folder cannot be written."""

    code = "registry-read-only"


class FolderGoneError(MissingPathError):
    """A registered delta lies in none of the folders where it was registered."""

    code = "folder-gone"


class InterruptedRunError(HfqError):
    """The user stopped the command."""

    code = "interrupted"
    exit_code = 130


# --- scores and policies ---------------------------------------------------------------------------------------------


class ScoreFileError(MalformedFileError):
    """A score file, or the prompt file beside it, of no known shape."""

    code = "score-file"


class UnknownMetricError(MalformedFileError):
    """A metric that its suite does not have."""

    code = "unknown-metric"


class DuplicateVideoError(MalformedFileError):
    """A video that occurs twice under one metric."""

    code = "duplicate-video"


class MeasurementError(UsageError):
    """A measurement that is not finite and positive."""

    code = "measurement"


class NotComparableError(UsageError):
    """Scores that are not of one metric, suite and prompt set, or have no video in common."""

    code = "not-comparable"


class SettingsDifferError(UsageError):
    """Two sides of a comparison that were generated with different settings."""

    code = "settings-differ"


class ClipMismatchError(UsageError):
    """A clip and its reference of different size or length, or a folder without a counterpart."""

    code = "clip-mismatch"


class ClipTooSmallError(UsageError):
    """A clip whose frames are smaller than what a measure looks through."""

    code = "clip-too-small"


class FeatureShapeError(UsageError):
    """Per-frame features that are not finite numbers [frames, width] of at least two frames."""

    code = "feature-shape"


class PolicyError(MalformedFileError):
    """A policy that follows its schema and cannot mean what it says."""

    code = "policy"


class UnknownWorkloadError(UsageError):
    """A workload that the policy does not have."""

    code = "unknown-workload"


class GateFailedError(HfqError):
    """A variant that does not pass its workload's gate."""

    code = "gate-failed"
    exit_code = 4


# --- Hugging Face Hub ------------------------------------------------------------------------------------------------


class HubError(HfqError):
    """The Hub refused a request, or answered something that its client cannot read."""

    code = "hub"


class HubUnavailableError(HubError):
    """The Hub cannot be reached, broke the connection off, or failed inside for longer than this command waits."""

    code = "hub-unavailable"


class HubBusyError(HubError):
    """The Hub asks for a longer pause (429 or 503, Retry-After) than this command makes."""

    code = "hub-busy"


class HubAccessError(HubError):
    """The Hub does not let this token, or nobody's token, do that."""

    code = "hub-access"
    exit_code = 2


class HubNotFoundError(HubError):
    """A repository, revision or file that the Hub does not have, or does not show to this token."""

    code = "hub-not-found"
    exit_code = 5


class HubConflictError(HubError):
    """The repository is not in the state that the request was made for: the branch moved, a tag names another delta."""

    code = "hub-conflict"
    exit_code = 3


class HubListingError(MalformedFileError):
    """A repository's list of files that no honest repository has: paths that leave it, doubles, look-alikes."""

    code = "hub-listing"


class ModelCardError(MalformedFileError):
    """A model card whose metadata the Hub would refuse or misread."""

    code = "model-card"
