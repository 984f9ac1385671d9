import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from nucsam_monai.handlers import GradientClipping


@pytest.mark.parametrize(("max_norm", "norm"), [(1.0, 1.0), (1e6, None)])
def test_a_step_is_as_long_as_the_clipped_gradient(max_norm, norm):
    network = nn.Linear(3, 2)
    start = [parameter.detach().clone() for parameter in network.parameters()]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.full((1, 3), 50.0), "label": torch.full((1, 2), -50.0)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=nn.MSELoss(),
        train_handlers=[GradientClipping(network, max_norm)],
        decollate=False,
    )
    trainer.run()
    moved = [old - new.detach() for old, new in zip(start, network.parameters(), strict=True)]
    length = torch.cat([change.flatten() for change in moved]).norm().item()
    if norm is None:
        assert 100 < length < max_norm
    else:
        assert length == pytest.approx(norm, rel=1e-4)
