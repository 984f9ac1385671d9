"""One dataset, one micro network and one short training of each bundle for all of its tests."""

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import monai
import pytest
import torch
from monai.utils import path_to_sqlite_uri

from nucsam_monai.networks import sac
from nucsam_monai.networks.sac import UNetGenerator
from nucsam_monai.networks.sam import SAM_VARIANTS, build_sam
from tests.bundles.cfrsam_runs import CFRSAM, WIDE
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG, joint_metrics, write_typed_dataset
from tests.bundles.runs import BundleRuns, write_datasets
from tests.bundles.sac_runs import SAC
from tests.bundles.unsam_runs import UNSAM
from tests.tiny_bundles import micro

__all__ = ["micro"]


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """Undo what a workflow sets for the whole process."""
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)
    monai.utils.set_determinism(None)
    monai.data.set_track_meta(True)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_datasets(tmp_path_factory.mktemp("datasets")))


@dataclass(frozen=True)
class Training:
    """A finished training that many tests only read."""

    folder: Path
    settings: dict[str, object]
    val_dice: float
    store_uri: str

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


def train_once(runs: BundleRuns, folder: Path, dataset_dir: str, template_database: Path) -> Training:
    """Train two epochs with tracking."""
    uri = path_to_sqlite_uri(shutil.copy(template_database, folder / "mlflow.db"))
    settings = {**runs.tiny, "dataset_dir": dataset_dir}
    workflow = runs.train(**{**settings, "epochs": 2, "output_dir": str(folder), "tracking_uri": uri})
    return Training(folder, settings, workflow.evaluator.state.metrics["val_dice"], uri)


@pytest.fixture(scope="session")
def training(
    tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, micro: None, template_database: Path
) -> Training:
    return train_once(UNSAM, tmp_path_factory.mktemp("training"), dataset_dir, template_database)


@pytest.fixture(scope="package")
def thin_generator() -> Iterator[None]:
    """SAC's generator with an eighth of its channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sac, "UNetGenerator", functools.partial(UNetGenerator, channels=4))
        yield


@pytest.fixture(scope="package")
def sac_training(
    tmp_path_factory: pytest.TempPathFactory,
    dataset_dir: str,
    micro: None,
    thin_generator: None,
    template_database: Path,
) -> Training:
    return train_once(SAC, tmp_path_factory.mktemp("sac_training"), dataset_dir, template_database)


@dataclass(frozen=True)
class TwoStageTraining:
    """A finished training of both stages that many tests only read."""

    folder: Path
    settings: dict[str, object]
    metrics: dict[str, float]
    store_uri: str


def two_stage_training(bundle: BundleRuns, folder: Path, template_database: Path) -> TwoStageTraining:
    uri = path_to_sqlite_uri(shutil.copy(template_database, folder / "mlflow.db"))
    settings = {**bundle.tiny, "dataset_dir": str(write_typed_dataset(folder / "data")), "epochs": 2}
    tracked = {**settings, "output_dir": str(folder / "train"), "tracking_uri": uri}
    workflow = bundle.train(**tracked)
    return TwoStageTraining(folder / "train", settings, joint_metrics(workflow), uri)


@pytest.fixture(scope="package")
def promptnucseg_training(
    tmp_path_factory: pytest.TempPathFactory, micro: None, template_database: Path
) -> TwoStageTraining:
    return two_stage_training(PROMPTNUCSEG, tmp_path_factory.mktemp("promptnucseg"), template_database)


@pytest.fixture(scope="package")
def micro_wide() -> Iterator[None]:
    """Gone after the bundles' tests: weights of ``micro`` fit this variant as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAM_VARIANTS, WIDE.name, WIDE)
        yield


@pytest.fixture(scope="package")
def cfrsam_training(
    tmp_path_factory: pytest.TempPathFactory, micro_wide: None, template_database: Path
) -> TwoStageTraining:
    return two_stage_training(CFRSAM, tmp_path_factory.mktemp("cfrsam"), template_database)


@pytest.fixture(scope="session")
def sam_weights(tmp_path_factory: pytest.TempPathFactory, micro: None) -> str:
    """Weights of a micro SAM in the official layout."""
    path = tmp_path_factory.mktemp("sam") / "sam_micro.pth"
    torch.manual_seed(7)
    torch.save(build_sam("micro", 32).state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def eunet3p_training(
    tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, sam_weights: str, template_database: Path
) -> Training:
    """A training with SAM's guidance."""
    folder = tmp_path_factory.mktemp("eunet3p_training")
    guided = {"sam_checkpoint": sam_weights, "embedding_cache": str(folder / "embeddings")}
    runs = replace(EUNET3P, tiny={**EUNET3P.tiny, **guided})
    return train_once(runs, folder, dataset_dir, template_database)


@pytest.fixture(scope="session")
def user_environment() -> dict[str, str]:
    """The environment of a user's shell: no GPU, and no path to the package but the working directory."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")
    }
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
