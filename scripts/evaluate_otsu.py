"""Evaluate Otsu's threshold, the baseline that every trained method must beat.

Example:
    python scripts/evaluate_otsu.py --dataset_dir data/demo --output_dir output/otsu
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data import load_items
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.metrics import foreground_metrics, instance_metrics
from nucsam_monai.utils.instances import connected_components


def main(
    dataset_dir: str | None = None, output_dir: str = "output/otsu", splits: Sequence[str] = ("test",)
) -> None:
    """Measure Otsu's threshold on the test images and write the tables of an evaluation.

    Args:
        dataset_dir: one dataset folder or a folder of several; the demo data by default.
        output_dir: where ``per_image.csv``, ``summary.csv`` and ``summary.json`` go.
        splits: the splits to evaluate.
    """
    from nucsam_monai.handlers.evaluation import write_report
    from nucsam_monai.inferers import otsu_foreground

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if dataset_dir is None:
        from nucsam_monai.data.demo import demo_dataset_dir

        dataset_dir = demo_dataset_dir()
    rows = []
    for item in with_progress(load_items(dataset_dir, splits), "Otsu", unit="image"):
        true = read_instances(item["instances"])
        predicted = connected_components(otsu_foreground(read_image(item["image"])))
        measured = {
            **foreground_metrics(true, predicted)._asdict(),
            **instance_metrics(true, predicted)._asdict(),
        }
        known = {name: item[name] for name in ("id", "domain", "group") if name in item}
        rows.append({**known, **measured})
    facts = {"method": "Otsu threshold", "dataset_dir": str(dataset_dir), "splits": list(splits)}
    write_report(Path(output_dir), rows, facts)


if __name__ == "__main__":
    sys.exit(run_command(main))
