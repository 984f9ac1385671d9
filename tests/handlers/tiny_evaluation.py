"""An evaluator of MONAI's whose network repeats the probability that each item brings."""

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, CopyItemsd
from torch import nn

from nucsam_monai.engines import PrepareDomainBatch
from nucsam_monai.io import write_png
from nucsam_monai.transforms import ProbabilityToInstancesd


class Repeat(nn.Module):
    """Return the first channel of the image; the batch's domain is not needed."""

    def forward(self, image, domain=None):
        return image[:, :1]


def item(name, domain, truth, probability, folder):
    """One non-square image with a ground truth and the probability that will be predicted, both (H, W)."""
    instances = torch.tensor(truth, dtype=torch.int32)[None]
    pixels = np.random.default_rng(0).integers(0, 256, (*instances.shape[1:], 3), dtype=np.uint8)
    write_png(folder / f"{domain}-{name}.png", pixels)
    return {
        "id": name,
        "domain": domain,
        "image_path": str(folder / f"{domain}-{name}.png"),
        "image": torch.tensor(probability, dtype=torch.float32)[None].repeat(3, 1, 1),
        "pixels": torch.from_numpy(pixels).permute(2, 0, 1),
        "instances": instances,
        "label": (instances > 0).float(),
    }


def toy_items(folder):
    """A missed nucleus, a perfect image, an empty image and one with nothing found, from two domains."""
    return [
        item(
            "0", "a", [[1, 1, 0, 0, 0], [0, 0, 0, 2, 2]], [[0.9, 0.6, 0, 0, 0], [0, 0, 0, 0.4, 0.3]], folder
        ),
        item("1", "b", [[0, 3, 3], [0, 3, 3]], [[0, 0.8, 0.8], [0, 0.8, 0.8]], folder),
        item("2", "a", [[0, 0], [0, 0], [0, 0]], [[0, 0], [0, 0.1], [0, 0]], folder),
        item("3", "a", [[1, 1, 1]], [[0.2, 0.2, 0.2]], folder),
    ]


def evaluator(items, handlers, **options):
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=1),
        network=Repeat(),
        prepare_batch=PrepareDomainBatch(),
        postprocessing=Compose(
            [ProbabilityToInstancesd("pred"), CopyItemsd("instances", names="label_instances")]
        ),
        val_handlers=handlers,
        **options,
    )
