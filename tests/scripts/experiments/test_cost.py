import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments.cost import write_cost
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import Tensor, nn

from nucsam_monai.inferers import DetectedPoints
from nucsam_monai.io import read_image
from nucsam_monai.networks.sam.convolutions import ConvNorms, SameConv


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1, 1))

    def forward(self) -> Tensor:
        return self.value[:, :, None, None].expand(1, -1, 2, 2)


class Scaled(nn.Module):
    """A network in which a module answers with a view of its parameter, as SAM's prompt encoder without a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = ConvNorms(SameConv(3, 2, kernel=1), nn.BatchNorm2d(2))
        self.token = Token()
        self.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image) * self.token().mean()


def read_item(item: dict[str, str]) -> dict[str, Tensor]:
    image = torch.from_numpy(read_image(item["image"])).permute(2, 0, 1).float()
    instances = torch.from_numpy(np.array(Image.open(item["instances"])))
    assert (instances.shape, int(instances.max())) == ((256, 256), 25)
    return {"image": image, "label": torch.zeros(1)}


def evaluator_of(network: nn.Module, **options: Any) -> SupervisedEvaluator:
    dataset = Dataset([{"image": "of another size.png", "instances": "likewise.png"}], read_item)
    return SupervisedEvaluator(torch.device("cpu"), DataLoader(dataset), network, **options)


def cost_of(evaluator: SupervisedEvaluator, network: nn.Module, folder: Path) -> dict[str, Any]:
    write_cost(evaluator, network, folder)
    return json.loads((folder / "cost.json").read_text())


def test_parameters_operations_and_speed_are_counted(tmp_path: Path) -> None:
    network = Scaled()
    cost = cost_of(evaluator_of(network), network, tmp_path)
    assert (cost["trainable_m"], cost["frozen_m"], cost["total_m"]) == (11e-6, 4e-6, 15e-6)
    assert cost["gmacs"] == 256 * 256 * 3 * 2 / 1e9
    assert (cost["image_px"], cost["prompts"]) == ([256, 256], 0)
    assert cost["images_per_second"] > 0


@pytest.mark.parametrize("shares_encoder", [False, True])
@pytest.mark.parametrize("found", [0, 7])
def test_prompts_are_the_drawn_nuclei_whatever_a_detector_finds(
    tmp_path: Path, shares_encoder: bool, found: int
) -> None:
    asked: list[int] = []

    class Finder:
        def __call__(self, image: Tensor) -> DetectedPoints:
            return DetectedPoints(np.zeros((found, 2)), np.ones(found), np.zeros(found))

        if shares_encoder:

            def find_in_tiles(self, encoded: Any, tiling: Any) -> DetectedPoints:
                return self(tiling)

    def inferer(image: Tensor, network: nn.Module, prompts: Any) -> Tensor:
        answer = prompts.find_in_tiles([], image) if shares_encoder else prompts(image)
        pixels = np.rint(answer.points).astype(int)
        assert (image[0, 0, pixels[:, 1], pixels[:, 0]] < 150).all()  # on nuclei
        asked.append(len(answer))
        return network(image)

    network = Scaled()
    prepare = lambda batch, *_: (batch["image"], batch["label"], (Finder(),), {})  # noqa: E731
    cost = cost_of(evaluator_of(network, inferer=inferer, prepare_batch=prepare), network, tmp_path)
    assert cost["prompts"] == 25
    assert asked == [25] * 6
