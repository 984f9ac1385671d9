import json
from pathlib import Path

import torch
from experiments.cost import write_cost
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn


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
        self.convolution = nn.Conv2d(3, 2, kernel_size=1, bias=False)
        self.token = Token()
        self.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image) * self.token().mean()


def test_parameters_operations_and_speed_are_counted(tmp_path: Path) -> None:
    network = Scaled()
    batches = [{"image": torch.zeros(1, 3, 8, 16), "label": torch.zeros(1)} for _ in range(3)]
    evaluator = SupervisedEvaluator(torch.device("cpu"), batches, network)
    write_cost(evaluator, network, tmp_path)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["trainable_m"], cost["frozen_m"], cost["total_m"]) == (7e-6, 4e-6, 11e-6)
    assert cost["gmacs"] == 8 * 16 * 3 * 2 / 1e9
    assert cost["counted_image_px"] == [8, 16]
    assert cost["images_per_second"] > 0
