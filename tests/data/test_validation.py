import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.test_dataset import edit, label_map, write_toy


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing image": (lambda root: (root / "images/s0.png").unlink(), "training/s0: .*missing"),
    "damaged image": (
        lambda root: (root / "images/s0.png").write_bytes(b"x"),
        "training/s0: .*not a readable",
    ),
    "grey image": (
        lambda root: save(root / "images/s0.png", np.zeros((6, 8), np.uint8)),
        "expected RGB uint8",
    ),
    "missing map": (lambda root: (root / "instances/s2.png").unlink(), "test/s2: .*missing"),
    "other shape": (
        lambda root: save(root / "instances/s0.png", np.zeros((8, 6), np.uint16)),
        r"map is \(8, 6\)",
    ),
    "gap in ids": (
        lambda root: save(root / "instances/s0.png", label_map(1, 3).astype(np.uint16)),
        "2 instances with ids up to 3",
    ),
    "class of nobody": (
        lambda root: (root / "classes/s0.json").write_text('{"1": 0, "2": 0, "5": 1}'),
        r"classes of 1 instances that do not exist: \[5\]",
    ),
    "no class": (
        lambda root: (root / "classes/s0.json").write_text('{"1": 0}'),
        "1 instances without a class",
    ),
    "unknown class": (
        lambda root: (root / "classes/s0.json").write_text('{"1": 0, "2": 2}'),
        r"class ids \[2\]; expected 0 to 1",
    ),
    "classes not JSON": (lambda root: (root / "classes/s0.json").write_text("{"), "expected a JSON object"),
    "stray file": (
        lambda root: (root / "images/extra.png").write_bytes(b""),
        r"images/extra\.png: not named",
    ),
    "divided group": (
        lambda root: edit(root, lambda content: content["test"][0].update(group="p-training")),
        "group 'p-training' is in 'training' and in 'test'",
    ),
    "id twice": (
        lambda root: edit(root, lambda content: content["test"][0].update(id="S0")),
        "id 'S0' is in 'training' and again in 'test'",
    ),
    "file twice": (
        lambda root: edit(root, lambda content: content["test"][0].update(image="images/s0.png")),
        "belongs to 's0' and to 's2'",
    ),
    "classes of some": (
        lambda root: edit(root, lambda content: content["test"][0].pop("classes")),
        "2 of 3 items have classes",
    ),
    "no items": (
        lambda root: edit(root, lambda content: content.update(training=[], test=[])),
        "has no items",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_found(tmp_path: Path, name: str) -> None:
    folder = write_toy(tmp_path / "toy")
    damage, message = PROBLEMS[name]
    damage(folder)
    with pytest.raises(DatasetError, match=message):
        validate_dataset(folder)


def test_all_problems_are_reported_at_once_and_twenty_shown(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    for name in ("missing map", "grey image"):
        PROBLEMS[name][0](folder)
    with pytest.raises(DatasetError, match=r"toy: 2 problem\(s\)") as caught:
        validate_dataset(folder)
    assert str(caught.value).count("\n  - ") == 2
    for number in range(30):
        (folder / "images" / f"extra{number}.png").touch()
    with pytest.raises(DatasetError, match="and 12 more") as caught:
        validate_dataset(folder)
    assert str(caught.value).count("\n  - ") == 20


def test_leftovers_of_operating_systems_are_ignored(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    (folder / ".DS_Store").touch()
    (folder / "images" / "._s0.png").touch()
    assert validate_dataset(folder).name == "toy"


def test_summary_counts_match_the_datalist(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    counts = json.loads((folder / "dataset.json").read_text())["conversion"]["counts"]
    summary = validate_dataset(folder)
    assert {name: vars(count) for name, count in summary.splits.items()} == counts
