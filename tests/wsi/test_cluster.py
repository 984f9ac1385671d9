"""Several workers give the bytes of one, and a worker that dies costs its shard only."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("distributed")

from nucsam_monai.utils.errors import OutputError
from nucsam_monai.utils.prediction import NucleiPrediction
from nucsam_monai.wsi import Method, SlideError, segment_slide
from nucsam_monai.wsi.cluster import connect, parts_for, segment_slide_on
from tests.wsi.slides import Oracle, oracle, picture_of, random_nuclei
from tests.wsi.test_run import OPTIONS, outputs


@dataclass(frozen=True)
class Source:
    """Where workers find the oracle, which may end its process."""

    deadly: str | None = None
    always: bool = False

    def load(self) -> Method:
        return oracle(lambda statistics: Deadly(self.deadly, self.always) if self.deadly else Oracle())


class Deadly(Oracle):
    """Ends its process: once, as the file tells, or always where the corner of the slide is seen."""

    def __init__(self, file: str, always: bool) -> None:
        self.file, self.always = Path(file), always

    def infer(self, pixels: np.ndarray) -> Any:
        if self.always or not self.file.exists():
            self.file.touch()
            os._exit(1)
        return super().infer(pixels)


@dataclass(frozen=True)
class FullDisk:
    """Where workers find an oracle whose nuclei cannot be written."""

    def load(self) -> Method:
        return oracle(lambda statistics: Full())


class Full(Oracle):
    """Fails as a full disk does, after the network."""

    def nuclei(self, maps: Any) -> NucleiPrediction:
        raise OutputError("shards/00000.parquet: can't be written (No space left on device).")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(picture_of(random_nuclei(900, 600, seed=3))).save(path)
    return path


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with ExitStack() as files:
        yield connect(files, 2, None)


def listening(pids: set[int]) -> set[str]:
    """Return the hexadecimal addresses on which processes listen."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # some are closed meanwhile
                target = str(file.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_two_workers_give_the_bytes_of_one(client: Any, slide: Path, tmp_path: Path) -> None:
    segment_slide(slide, tmp_path / "one", oracle(), OPTIONS)
    result = segment_slide_on(client, slide, tmp_path / "two", Source(), OPTIONS)  # type: ignore[arg-type]
    assert result.status == "done"
    assert outputs(tmp_path / "one" / "slide") == outputs(tmp_path / "two" / "slide")
    environments = client.run(lambda: dict(os.environ)).values()
    assert all("MALLOC_TRIM_THRESHOLD_" not in environment for environment in environments)
    pids = {os.getpid(), *client.run(os.getpid).values()}
    assert listening(pids) == {"0100007F"}


def test_a_worker_that_dies_costs_its_shard_only(client: Any, slide: Path, tmp_path: Path) -> None:
    segment_slide(slide, tmp_path / "one", oracle(), OPTIONS)
    source: Any = Source(str(tmp_path / "died"))
    segment_slide_on(client, slide, tmp_path / "two", source, OPTIONS)
    assert (tmp_path / "died").exists()
    assert outputs(tmp_path / "one" / "slide") == outputs(tmp_path / "two" / "slide")


def test_a_slide_that_ends_its_workers_fails_and_the_next_one_works(
    client: Any, slide: Path, tmp_path: Path
) -> None:
    source: Any = Source(str(tmp_path / "died"), always=True)
    with pytest.raises(SlideError, match="shards failed"):
        segment_slide_on(client, slide, tmp_path / "two", source, OPTIONS)
    client.wait_for_workers(2, timeout=30)
    assert segment_slide_on(client, slide, tmp_path / "three", Source(), OPTIONS).status == "done"  # type: ignore[arg-type]


def test_a_full_disk_is_told_as_such(client: Any, slide: Path, tmp_path: Path) -> None:
    source: Any = FullDisk()
    with pytest.raises(OutputError, match="No space left"):
        segment_slide_on(client, slide, tmp_path, source, OPTIONS)


def test_parts_become_small_towards_the_end() -> None:
    parts = parts_for(range(3, 30), 2)
    assert [len(part) for part in parts] == [4, 4, 4, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert [index for part in parts for index in part] == list(range(3, 30))
    assert parts_for([], 2) == []


def test_the_plan_names_what_it_was_made_for(slide: Path, tmp_path: Path) -> None:
    segment_slide(slide, tmp_path, oracle(), OPTIONS)
    plan = json.loads((tmp_path / "slide" / "plan.json").read_text())
    assert plan["request"]["method"] == {"bundle": "oracle"}
    assert plan["request"]["mpp"] == {"value": 0.25, "source": "given"}
