"""Plot the curves of tracked trainings: the loss and a validation metric by images seen.

Example:
    python scripts/plot_training.py output/curves.png --runs "{'UN-SAM': '<run id>', 'U-Net': '<run id>'}"
"""

import sys
from pathlib import Path

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.utils.files import atomic_path


def main(output: str, runs: dict[str, str], metric: str = "val_dice", store: str | None = None) -> None:
    """Draw one line per run in two panels.

    Args:
        output: the PNG file.
        runs: label to run id; ``mlflow ui`` shows the ids.
        metric: the validation metric of the second panel.
        store: tracking URI; the project's own by default.
    """
    import matplotlib.pyplot as plt
    from mlflow.tracking import MlflowClient

    from nucsam_monai.handlers import tracking_uri

    client = MlflowClient(store or tracking_uri())
    figure, (losses, metrics) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for label, run in runs.items():
        last_epoch = max(point.step for point in client.get_metric_history(run, "train_loss"))
        for axes, name in ((losses, "train_loss"), (metrics, metric)):
            points = sorted(client.get_metric_history(run, name), key=lambda point: point.step)
            share = [point.step / last_epoch for point in points]
            axes.plot(
                share, [point.value for point in points], marker="o" if axes is metrics else "", label=label
            )
    for axes, title in ((losses, "training loss"), (metrics, metric.replace("_", " "))):
        axes.set(xlabel="share of the training", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(Path(output)) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    sys.exit(run_command(main))
