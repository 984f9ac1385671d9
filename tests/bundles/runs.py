"""Runs of a bundle on data and networks so small that a step takes milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from safetensors.torch import load_file

from nucsam_monai.data import DatasetWriter
from nucsam_monai.data.dataset import DatasetMetadata

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = REPOSITORY / "bundles"

# The domains differ in size, so that the epochs of a sequential training differ in length.
IMAGES = {
    "bright": {"training": 3, "validation": 1, "test": 1},
    "dark": {"training": 5, "validation": 2, "test": 2},
}
HEIGHT, WIDTH = 72, 64

OF_THE_FOLDER = {".inference.jsonl", "inference_summary.json"}
"""What an inference writes besides the files of its images."""

TINY = {
    "device": "$torch.device('cpu')",
    "sam_variant": "micro",
    "image_size": 32,
    "precision": "fp32",
    "hide_progress": True,
    "epochs": 1,
    "val_interval": 1,
    "batch_size": 2,
    "samples_per_epoch": None,
    "tracking_uri": "off",
}
_OF_THE_MACHINE = (
    "device",
    "sam_variant",
    "image_size",
    "precision",
    "hide_progress",
    "tracking_uri",
    "dataset_dir",
)


def small_recipe(settings: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
    """Return what turns a paper's recipe into seconds: the micro network, small images and data of a training."""
    return {**{key: settings[key] for key in _OF_THE_MACHINE}, "output_dir": str(output_dir)}


def write_datasets(root: Path) -> Path:
    """Write two domains; the first image of every training split has no nucleus."""
    rng = np.random.default_rng(0)
    for domain, counts in IMAGES.items():
        metadata = DatasetMetadata(
            name=domain,
            domain=domain,
            modality="synthetic",
            magnification=20.0,
            mpp=0.5,
            licence="CC0-1.0",
            citation="none",
        )
        with DatasetWriter(root / domain, metadata) as writer:
            for split, count in counts.items():
                for number in range(count):
                    nuclei = 0 if (split, number) == ("training", 0) else 4
                    image, instances = draw(rng, nuclei, inverted=domain == "dark")
                    writer.add(split, f"{split}_{number}", image, instances)
    return root


def draw(rng: np.random.Generator, nuclei: int, inverted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image and its instance map with ``nuclei`` discs on a grid."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    instances = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for number in range(nuclei):
        y, x = 18 + 36 * (number // 2) + rng.integers(-5, 6), 16 + 32 * (number % 2) + rng.integers(-5, 6)
        instances[(rows - y) ** 2 + (columns - x) ** 2 <= 64] = number + 1
    grey = np.where(instances > 0, 60, 200) + rng.integers(-20, 21, instances.shape)
    grey = 255 - grey if inverted else grey
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2), instances


@dataclass(frozen=True)
class BundleRuns:
    """The workflows of one bundle, as ``monai.bundle run`` starts them."""

    name: str
    tiny: Mapping[str, Any] = field(default_factory=lambda: TINY)

    @property
    def folder(self) -> Path:
        return BUNDLES / self.name

    @property
    def configs(self) -> Path:
        return self.folder / "configs"

    def bundle(self, *overlays: str, base: str = "train", **settings: Any) -> ConfigWorkflow:
        """Parse and initialise configurations by name."""
        workflow = ConfigWorkflow(
            config_file=[str(self.configs / f"{name}.json") for name in (base, *overlays)],
            logging_file=False,
            workflow_type="infer" if base == "inference" else "train",
            **settings,
        )
        workflow.initialize()
        return workflow

    def train(self, *overlays: str, **settings: Any) -> ConfigWorkflow:
        workflow = self.bundle(*overlays, **{**self.tiny, **settings})
        workflow.run()
        workflow.finalize()
        return workflow

    def evaluate(self, *overlays: str, **settings: Any) -> ConfigWorkflow:
        return self.train(*overlays, "evaluate", **settings)


def network_of(workflow: ConfigWorkflow) -> torch.nn.Module:
    return workflow.parser.get_parsed_content("network_def")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def assert_same_tensors(first: Path, second: Path) -> None:
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def raised_from(error: BaseException | None, kind: type[BaseException]) -> str | None:
    """Return the message of the error of ``kind`` that MONAI wrapped in others, if there is one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return None if error is None else f"{kind.__name__}: {error}"
