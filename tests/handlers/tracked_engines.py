"""Small engines, and what a test asks a tracking database about the runs they wrote."""

from typing import Any

import mlflow
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    MeanSquaredError,
    from_engine,
)

EXPERIMENT = "nucsam/demo"


class Store:
    """What a test asks a tracking database."""

    def __init__(self, uri: str) -> None:
        self.client = mlflow.MlflowClient(uri)

    def runs(self, experiment: str = EXPERIMENT) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))

    def only_run(self, experiment: str = EXPERIMENT) -> Any:
        (run,) = self.runs(experiment)
        return run

    def curve(self, run: Any, metric: str) -> dict[int, float]:
        points = self.client.get_metric_history(run.info.run_id, metric)
        assert len({point.step for point in points}) == len(points), f"{metric}: a step was written twice"
        return {point.step: point.value for point in points}

    def artifacts(self, run: Any, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(2, 4, generator=generator), "label": torch.rand(2, 1, generator=generator)}
        for _ in range(count)
    ]


def make_evaluator(*handlers: Any, network: torch.nn.Module | None = None) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches(2),
        network=network or torch.nn.Linear(4, 1),
        key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=list(handlers),
    )


def make_trainer(*handlers: Any, epochs: int = 2, loss: Any = None, **options: Any) -> SupervisedTrainer:
    network = torch.nn.Linear(4, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches(),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss or torch.nn.MSELoss(),
        train_handlers=list(handlers),
        **options,
    )


class Breaking:
    """A loss that raises at its n-th call."""

    def __init__(self, error: BaseException, at: int = 4) -> None:
        self.error, self.calls_left = error, at

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise self.error
        return torch.nn.functional.mse_loss(prediction, target)
