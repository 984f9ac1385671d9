"""Experiments whose commands cost nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from experiments import Experiment, Places, read_experiment

from nucsam_monai.data import load_items
from nucsam_monai.data.label_files import read_instances
from nucsam_monai.handlers.evaluation import write_report
from nucsam_monai.io import write_json, write_label_image

TWO_METHODS = {
    "name": "toy",
    "title": "A toy",
    "protocol": "in_domain",
    "metrics": ["dice", "pq"],
    "methods": [
        {"name": "A", "bundle": "unsam"},
        {"name": "B", "bundle": "baselines", "settings": {"baseline": "unet"}},
    ],
    "forms": {"small": {"datasets": ["bright", "dark"]}},
}


def experiment_of(folder: Path, form: str = "small", **changes: object) -> Experiment:
    """Write the toy experiment with some keys changed, and read it."""
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**TWO_METHODS, **changes}))
    return read_experiment(path, form)


def places_of(folder: Path, dataset_dir: str, tracking_uri: str | None = None) -> Places:
    return Places(Path(dataset_dir), folder / "weights", folder / "output", tracking_uri)


class StubCommands:
    """Answers a bundle's commands at once, and can be killed in the middle of one.

    The value of every metric of an image is its position among the test images, divided by ten, plus the seed's
    share of a hundredth.
    """

    def __init__(self, killed_at: int | None = None, failing: str | None = None) -> None:
        self.killed_at = killed_at
        self.failing = failing
        self.calls: list[str] = []

    def __call__(self, arguments: Sequence[str], log: Path, lock: int | None) -> int:
        run, files = arguments[4], json.loads(arguments[6])
        settings = json.loads(Path(files[-1]).read_text())
        output = Path(settings["output_dir"])
        self.calls.append(output.name)
        if self.killed_at == len(self.calls):
            (output / "per_image.csv").write_text("half a file")
            raise KeyboardInterrupt
        if self.failing is not None and self.failing in output.name:
            return 3
        if run == "training":
            (output / "model.safetensors").write_text(json.dumps(settings))
        elif run == "cost":
            values = {
                "trainable_m": 1.5,
                "frozen_m": 0.5,
                "total_m": 2.0,
                "gmacs": 3.0,
                "images_per_second": 4.0,
            }
            write_json(output / "cost.json", values)
        else:
            self._evaluate(settings, output)
        return 0

    def _evaluate(self, settings: dict, output: Path) -> None:
        items = load_items(
            settings["dataset_dir"], settings["splits"], protocol=settings.get("split_protocol")
        )
        rows = []
        for position, item in enumerate(items):
            value = position / 10 + settings["seed"] / 100
            rows.append({"id": item["id"], "domain": item["domain"], "dice": value, "pq": value, "hd": 5.0})
            truth = read_instances(item["instances"]).astype(np.int32)
            write_label_image(output / "label_maps" / f"{item['domain']}_{item['id']}.tif", truth)
        write_report(output, rows, {})
