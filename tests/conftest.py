"""What tests of several rooms share: the tiny Wan, a small calibration of it, and random diffusers pipelines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from hfq.convert.pipelines import LoadedModel

sys.path.insert(0, str(Path(__file__).parent / "convert"))

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the registry, the keys and the witnesses of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFQ_REGISTRY", str(home / "registry.sqlite"))
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        patch.delenv("HFQ_CONFIG", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield


@pytest.fixture(scope="session")
def tiny_weights() -> Path:
    """The folder of the tiny Wan that ships with the package: original Wan 2.2 layout, two experts. Read only."""
    from hfq.convert.tiny.pipeline import WEIGHTS

    return WEIGHTS


@pytest.fixture(scope="session")
def tiny_model(tiny_weights: Path) -> LoadedModel:
    """The tiny Wan's pipeline, loaded; a test that changes it puts it right again."""
    from hfq.convert.pipelines import load_model

    return load_model(tiny_weights)


@pytest.fixture(scope="session")
def tiny_calibration(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the tiny Wan: two prompts, six steps (both experts, both branches), parts, 32 inputs kept.

    The folder is shared; a test that changes it works on a copy.
    """
    from tiny_pipelines import TINY_PROMPTS

    import hfq

    out = tmp_path_factory.mktemp("calibration") / "tiny"
    calibration = hfq.calibrate(tiny_weights, list(TINY_PROMPTS), out, steps=6, parts=True, keep_inputs=32)
    calibration.close()
    return out


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random two-expert text-to-video pipeline (Wan 2.2 T2V); see `tiny_pipelines`."""
    from tiny_pipelines import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "t2v-2.2", "t2v-2.2")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up base of two blocks and two experts in the original Wan 2.2 layout; see `made`. Not to be written."""
    from made import write_base

    return Path(write_base(tmp_path_factory.mktemp("base") / "wan"))


@pytest.fixture(scope="session")
def small_calibration(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up calibration of `small_base`. Not to be written."""
    from made import write_calibration

    import hfq

    with hfq.open_checkpoint(small_base) as checkpoint:
        return write_calibration(tmp_path_factory.mktemp("calibration") / "small", checkpoint)


@pytest.fixture(scope="session")
def small_delta(small_base: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_base` converted by `tail-aware-hif4`. Not to be written."""
    import hfq

    out = tmp_path_factory.mktemp("delta") / "tail-aware"
    with hfq.open_checkpoint(small_base) as checkpoint:
        hfq.quantize(checkpoint, "tail-aware-hif4", small_calibration, out=out).close()
    return out
