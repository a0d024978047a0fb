"""Failures of checkpoints, calibrations, recipes, deltas and analyses."""

from __future__ import annotations

from .general import DigestMismatchError, HfqError, MalformedFileError

__all__ = [
    "AnalysisBaseError",
    "BlobDigestError",
    "CalibrationBaseError",
    "CalibrationMergeError",
    "CalibrationRangeError",
    "CodesError",
    "ConfigMismatchError",
    "HessianError",
    "InconsistentDeltaError",
    "IndexMismatchError",
    "MaskValueError",
    "MissingAnalysisError",
    "MissingCalibrationError",
    "MissingPipelineError",
    "MissingRoleError",
    "MissingTensorError",
    "NonFiniteActivationError",
    "NonFiniteWeightError",
    "RecipeError",
    "ShapeMismatchError",
    "StageFormatError",
    "StageOrderError",
    "TooFewRowsError",
    "UnexpectedTensorError",
    "UnfinishedDownloadError",
    "UnknownLayoutError",
    "UnknownWordError",
    "UnmatchedRuleError",
    "UnroutedSiteError",
    "UnsupportedDtypeError",
    "UnsupportedModelError",
    "WrappedNameError",
    "WrongBaseError",
    "WrongIdError",
    "WrongRoleError",
]


class InconsistentDeltaError(MalformedFileError):
    """A delta whose parts contradict each other, although every hash in it is right."""

    code = "inconsistent"


class UnsupportedDtypeError(HfqError):
    """A tensor's dtype is not one a base may have (F32, BF16, F16)."""

    code = "unsupported-dtype"


class UnsupportedModelError(HfqError):
    """A checkpoint of a kind that is recognised and not supported (Animate, S2V, fp8_scaled, GGUF)."""

    code = "unsupported-model"


class UnknownLayoutError(HfqError):
    """Tensor names that belong to no known Wan layout."""

    code = "unknown-layout"


class WrappedNameError(UnknownLayoutError):
    """Tensor names with the name of a wrapper (a compiler, a sharding, an adapter) inside them."""

    code = "wrapped-names"


class UnfinishedDownloadError(HfqError):
    """A file of a checkpoint beside the mark that its download has not ended."""

    code = "unfinished-download"


class BlobDigestError(DigestMismatchError):
    """A file in the Hub's cache whose content is not that of the digest in its name."""

    code = "blob-digest"


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
    """NaN or infinity in a base, or a number that BF16 or a weight's format makes infinite."""

    code = "non-finite"


class MaskValueError(MalformedFileError):
    """A channel mask in a delta that holds zero, a negative, a subnormal, an infinity or NaN."""

    code = "mask-value"


class NonFiniteActivationError(HfqError):
    """NaN or infinity in an activation during calibration."""

    code = "non-finite-activation"


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


class UnknownWordError(HfqError):
    """A prompt for the tiny model with a word outside its vocabulary."""

    code = "unknown-word"
    exit_code = 2


class WrongBaseError(HfqError):
    """The checkpoint is not the one that the delta is bound to."""

    code = "wrong-base"
    exit_code = 3


class WrongRoleError(HfqError):
    """The checkpoint is known, but under another role."""

    code = "wrong-role"
    exit_code = 3


class WrongIdError(DigestMismatchError):
    """A document whose content does not hash to its own id: it was edited."""

    code = "wrong-id"


class CalibrationBaseError(HfqError):
    """A calibration that was made with another model."""

    code = "calibration-base"
    exit_code = 3


class AnalysisBaseError(HfqError):
    """An analysis that was made with another model."""

    code = "analysis-base"
    exit_code = 3
