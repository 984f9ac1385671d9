"""One dataset, one micro network and one short training for all tests of a bundle."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import monai
import pytest
import torch
from monai.utils import path_to_sqlite_uri

from nucsam_monai.networks.sam import SAM_VARIANTS
from tests.bundles.unsam_runs import TINY, train, write_datasets
from tests.networks.conftest import MICRO


@pytest.fixture(scope="session")
def micro() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAM_VARIANTS, MICRO.name, MICRO)
        yield


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


@pytest.fixture(scope="session")
def training(
    tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, micro: None, template_database: Path
) -> Training:
    folder = tmp_path_factory.mktemp("training")
    uri = path_to_sqlite_uri(shutil.copy(template_database, folder / "mlflow.db"))
    settings = {**TINY, "dataset_dir": dataset_dir}
    workflow = train(**{**settings, "epochs": 2, "output_dir": str(folder), "tracking_uri": uri})
    return Training(folder, settings, workflow.evaluator.state.metrics["val_dice"], uri)


@pytest.fixture(scope="session")
def user_environment() -> dict[str, str]:
    """The environment of a user's shell: no GPU, and no path to the package but the working directory."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")
    }
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
