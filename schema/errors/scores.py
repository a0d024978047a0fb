"""Failures of scores, policies and the Hub."""

from __future__ import annotations

from .general import HfqError, MalformedFileError, UsageError

__all__ = [
    "AmbiguousScoresError",
    "ClipMismatchError",
    "ClipPairError",
    "ClipTooSmallError",
    "DuplicateVideoError",
    "FeatureShapeError",
    "GateFailedError",
    "HubAccessError",
    "HubBusyError",
    "HubConflictError",
    "HubError",
    "HubListingError",
    "HubNotFoundError",
    "HubTieError",
    "HubUnavailableError",
    "MeasurementError",
    "ModelCardError",
    "NotComparableError",
    "PolicyError",
    "ScoreFileError",
    "ScoreRangeError",
    "SettingsDifferError",
    "UnknownMetricError",
    "UnknownScoresError",
    "UnknownWorkloadError",
]


class ScoreFileError(MalformedFileError):
    """A score file, or the prompt file beside it, of no known shape."""

    code = "score-file"


class ScoreRangeError(MalformedFileError):
    """A value that its metric cannot have, such as a percentage of a share."""

    code = "score-range"


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


class ClipPairError(HfqError):
    """A clip and its reference of one name that are known to show other prompts, seeds or first frames."""

    code = "clip-pair"
    exit_code = 3


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


class UnknownScoresError(HfqError):
    """A metric, suite or prompt set that nothing on a base was scored by."""

    code = "unknown-scores"
    exit_code = 5


class AmbiguousScoresError(HfqError):
    """A metric that several suites computed, or that was computed on several prompt sets."""

    code = "ambiguous-scores"
    exit_code = 5


class GateFailedError(HfqError):
    """A variant that does not pass its workload's gate."""

    code = "gate-failed"
    exit_code = 4


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


class HubTieError(HubError):
    """A commit on the Hub does not hold every file of the base that was to be tied to it."""

    code = "hub-tie"
    exit_code = 3


class HubListingError(MalformedFileError):
    """A repository's list of files that no honest repository has: paths that leave it, doubles, look-alikes."""

    code = "hub-listing"


class ModelCardError(MalformedFileError):
    """A model card whose metadata the Hub would refuse or misread."""

    code = "model-card"
