"""CellViT: classes by HoVer-Net's rule."""

import numpy as np
import torch

from nucsam_monai import systems
from nucsam_monai.losses import MaskLoss

NAME = "cellvit-vit_b"


def test_it_learns_and_gives_the_classes_of_nuclei() -> None:
    torch.manual_seed(0)
    class_names = ("epithelial", "other")
    network = systems.build_network(NAME, "small", class_names=class_names)
    instances = torch.zeros(1, 64, 64, dtype=torch.int32)
    instances[0, 6:20, 4:20], instances[0, 30:50, 24:50] = 4, 9
    (step,) = systems.own_targets(NAME, "own", class_names)
    target = step({"instances": instances, "classes": {4: 0, 9: 1}})["label"]
    systems.own_loss(NAME, MaskLoss())(
        network.train()(torch.randn(2, 3, 64, 64)), torch.stack([target] * 2)
    ).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    # What a network that knows the answer would give.
    types = [target[3] == number for number in (1, 2)]
    maps = torch.stack([target[0], *(target[1:3] + 1) / 2, *types])
    nuclei = systems.system_instances(NAME, 0.5, "own", class_names=class_names)({"pred": maps})["pred"]
    assert nuclei.class_names == class_names
    np.testing.assert_array_equal(nuclei.table["class_id"], [0, 1])
