"""Write copies of bundles that MONAI Label's own app ``monaibundle`` serves.

It reads weights from ``models/model.pt``, runs preprocessing, inferer and postprocessing by itself, and writes what
is then under ``pred``, with rows and columns exchanged, as a label image. It knows neither polygons nor clicks.
"""

import json
import shutil
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from nucsam_monai.inferers import PointFinder, PromptedInferer, PromptedPrediction
from nucsam_monai.networks import PromptNucSeg
from nucsam_monai.segmenter import Segmenter, keys_behind
from nucsam_monai.utils.files import atomic_directory
from nucsam_monai.utils.prediction import NucleiPrediction

_READ_BY_THE_APP = (
    "imports",
    "bundle_root",
    "device",
    "preprocessing",
    "network_def",
    "network",
    "inferer",
    "postprocessing",
)
_HERE = "nucsam_monai.apps.monailabel.stock_app"


class AutomaticPromptsInferer(Inferer):
    """Find the points and segment the nuclei there.

    Args:
        inferer: inferer that segments the nuclei at the points.
        mask_filter: see :class:`~nucsam_monai.inferers.PointFinder`.
        radius_px: see :class:`~nucsam_monai.inferers.PointFinder`.
    """

    def __init__(self, inferer: PromptedInferer, *, mask_filter: bool, radius_px: float) -> None:
        super().__init__()
        self.inferer = inferer
        self.mask_filter = mask_filter
        self.radius_px = radius_px

    def __call__(
        self, inputs: Tensor, network: PromptNucSeg, *args: Any, **kwargs: Any
    ) -> list[PromptedPrediction]:
        """Return the nuclei of a batch of one normalised image ``(1, 3, H, W)``."""
        finder = PointFinder(network.prompter, mask_filter=self.mask_filter, radius_px=self.radius_px)
        return [self.inferer(inputs, network, finder)]


class StockLabeld(MapTransform):
    """Hand over the label map as MONAI Label's writer takes it: ``(W, H)`` uint16, or int32 past 65535 ids.

    Args:
        keys: ``pred``, a ``NucleiPrediction`` that becomes the label map.
        image_key: the image, whose size is noted in the same order, as MONAI Label compares them.
    """

    def __init__(self, keys: str = "pred", image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the label map."""
        item = dict(data)
        for key in self.key_iterator(item):
            label_map = item[key].instances
            fits = label_map.max(initial=0) <= np.iinfo(np.uint16).max
            item[key] = np.ascontiguousarray(label_map.T, dtype=np.uint16 if fits else np.int32)
            if isinstance(item.get(self.image_key), MetaTensor):
                item[self.image_key].meta["spatial_shape"] = np.array(item[key].shape)
        return item


class BatchOfOneInferer(Inferer):
    """Return the nuclei of a batch of one image as a list, as the app takes what an inferer returns.

    Args:
        inferer: returns the nuclei of one image.
    """

    def __init__(self, inferer: Callable[[Tensor, Any], NucleiPrediction]) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> list[NucleiPrediction]:
        """Return the nuclei of a batch of one normalised image ``(1, 3, H, W)``."""
        return [self.inferer(inputs, network)]


def export_for_stock_app(bundle: Segmenter, folder: Path) -> None:
    """Write a copy of a bundle with its weights for the app ``monaibundle``.

    Args:
        bundle: bundle with weights.
        folder: the copy, ``<app>/model/<name>``; it appears whole or not at all.

    Raises:
        FileExistsError: the folder exists and is not empty.
        CheckpointError: there are no weights, or they belong to another bundle.
    """
    config = {**bundle.config, **bundle.settings, "sam_checkpoint": None}
    for key, names in (("domains", bundle.domains), ("class_names", bundle.class_names)):
        if key in config:
            config[key] = list(names)
    if "find_points" in config:
        config["prompted_inferer"] = config["inferer"]
        config["inferer"] = {
            "_target_": f"{_HERE}.AutomaticPromptsInferer",
            "inferer": "@prompted_inferer",
            "mask_filter": "@mask_filter",
            "radius_px": "@point_radius_px",
        }
    elif "postprocessing" not in config:  # the inferer returns nuclei
        config["inferer_of_one"] = config["inferer"]
        config["inferer"] = {"_target_": f"{_HERE}.BatchOfOneInferer", "inferer": "@inferer_of_one"}
    config["preprocessing"] = {**config["preprocessing"], "points": None, "items": []}
    last = {"_target_": f"{_HERE}.StockLabeld", "keys": "pred"}
    steps = [config.get("postprocessing", []), last]
    config["postprocessing"] = {"_target_": "nucsam_monai.transforms.chain", "transforms": steps}
    weights = bundle.value("checkpoint")
    single_file = weights is not None and Path(weights).is_file()
    if single_file:  # its header may say what the network is
        config["checkpoint"] = "$@bundle_root + '/models/model.safetensors'"
    needed = keys_behind(config, _READ_BY_THE_APP)
    kept = {key: value for key, value in config.items() if key in needed}
    with atomic_directory(folder) as temporary:
        (temporary / "configs").mkdir()
        (temporary / "models").mkdir()
        shutil.copy(bundle.folder / "configs" / "metadata.json", temporary / "configs" / "metadata.json")
        shutil.copy(bundle.folder / "LICENSE", temporary / "LICENSE")
        (temporary / "configs" / "inference.json").write_text(json.dumps(kept, indent=4) + "\n")
        if single_file:
            shutil.copy(weights, temporary / "models" / "model.safetensors")
        torch.save(bundle.network.state_dict(), temporary / "models" / "model.pt")
