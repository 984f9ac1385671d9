"""The demo data on disk: written once, whole, and never over something else."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from nucsam_monai.data.dataset import find_datasets, load_items, read_dataset
from nucsam_monai.data.demo import DEMO_DOMAINS, DemoCounts, DemoSlot, demo_dataset_dir, draw_demo_image
from nucsam_monai.data.demo import folder as demo_folder
from nucsam_monai.data.label_files import read_classes, read_image, read_instances
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

TINY = DemoCounts(training=1, validation=1, test=2, held_out_test=1)
PROJECT = Path(__file__).parents[2]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(demo_dataset_dir(tmp_path_factory.mktemp("demo") / "demo", counts=TINY))


def test_there_is_one_dataset_folder_per_domain(tiny: Path) -> None:
    datasets = [read_dataset(folder) for folder in find_datasets(tiny)]
    assert {dataset.metadata.name for dataset in datasets} == set(DEMO_DOMAINS)
    for dataset in datasets:
        assert dataset.metadata.domain == dataset.folder.name
        assert dataset.metadata.class_names == ("round", "elongated")
    assert [len(load_items(tiny, split)) for split in ("training", "validation", "test")] == [4, 4, 9]
    assert not list(tiny.parent.glob(".*")), "temporary folders are left"


def test_files_hold_what_is_drawn(tiny: Path) -> None:
    (item,) = load_items(tiny, "training", "demo_phase")
    drawn = draw_demo_image(DemoSlot("demo_phase", "training", 0, 0))
    assert item["id"] == "demo_phase_training_000"
    assert item["group"] == "demo_phase_slide00"
    assert (read_image(item["image"]) == drawn.image).all()
    assert (read_instances(item["instances"]) == drawn.instances).all()
    assert read_classes(item["classes"]) == drawn.classes


def test_a_second_call_draws_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_folder, "_write", None)  # calling it would raise
    assert demo_dataset_dir(str(tiny), counts=TINY) == str(tiny)


def test_two_processes_at_once_leave_one_whole_folder_of_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from nucsam_monai.data.demo import *; print('ready', flush=True); "
        f"print(demo_dataset_dir(sys.argv[1], counts={TINY!r}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "shared")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"  # its imports take longer than our drawing
        ours = demo_dataset_dir(tmp_path / "shared", counts=TINY)
        assert ours == other.stdout.read().strip() == str(tmp_path / "shared")
    assert other.returncode == 0
    assert digests(tmp_path / "shared") == digests(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_losing_the_race_is_not_an_error(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "demo"

    def overtaken(folder: Path, seed: int, counts: DemoCounts) -> None:
        (folder / "half").write_text("ours")
        tiny_copy = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
        for path, content in tiny_copy.items():
            copy = target / path.relative_to(tiny)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)

    monkeypatch.setattr(demo_folder, "_write", overtaken)
    assert demo_dataset_dir(target, counts=TINY) == str(target)
    assert digests(target) == digests(tiny)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(folder: Path, seed: int, counts: DemoCounts) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_folder, "_write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        demo_dataset_dir(tmp_path / "demo", counts=TINY)
    assert not list(tmp_path.iterdir())


def stamped(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    stamp = {
        "generator": "nucsam_monai.data.demo",
        "version": demo_folder.DEMO_VERSION,
        "seed": 0,
        "counts": {"training": 1, "validation": 1, "test": 2, "held_out_test": 1},
    }
    (folder / "demo.json").write_text(json.dumps(stamp | changes))
    return folder


@pytest.mark.parametrize("changes", [{"version": 0}, {"seed": 7}, {"generator": "other"}])
def test_a_stale_stamp_is_named_and_nothing_is_touched(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = stamped(tmp_path / "demo", **changes)
    before = digests(folder)
    with pytest.raises(DatasetError, match=r"of another kind.*Remove the folder"):
        demo_dataset_dir(folder, counts=TINY)
    assert digests(folder) == before


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="incomplete, without demo_fluorescence"):
        demo_dataset_dir(stamped(tmp_path / "demo"), counts=TINY)


@pytest.mark.parametrize("name", ["holiday.jpg", "demo.json"])
def test_a_foreign_folder_is_named_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not a stamp")
    with pytest.raises(DatasetError, match="not a demo dataset"):
        demo_dataset_dir(tmp_path, counts=TINY)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_default_is_below_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_folder, "project_root", lambda: tmp_path)
    monkeypatch.setattr(demo_folder, "_write", lambda folder, seed, counts: None)
    assert demo_dataset_dir(counts=TINY) == str(tmp_path / "data" / "demo")


def test_a_negative_seed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="seed -1"):
        demo_dataset_dir(tmp_path, seed=-1)
