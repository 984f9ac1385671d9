"""Check whole slides at their real size: a million nuclei to merge, twenty kills, many ways to cut one slide.

Examples:
    python scripts/benchmark_slides.py merge --nuclei 1000000
    python scripts/benchmark_slides.py merge --outputs labels
    python scripts/benchmark_slides.py kill --times 20
    python scripts/benchmark_slides.py seams --shardings 200
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from nucsam_monai.utils.prediction import prediction_from_instances
from nucsam_monai.wsi import Journal, segment_slide
from nucsam_monai.wsi.grid import cut_shards
from nucsam_monai.wsi.nuclei_table import measure, nuclei_rows
from tests.wsi.slides import areas_and_places, oracle, picture_of, random_nuclei
from tests.wsi.test_run import OPTIONS, WORK, outputs
from tests.wsi.test_seams import found

SHARD_PX, STRIDE_PX = 4032, 192


def main() -> int:
    """Run one check; return 0 if it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=("merge", "kill", "seams"))
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--outputs", default="parquet,geojson,csv")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--shardings", type=int, default=200)
    arguments = parser.parse_args()
    checks: dict[str, Callable[[Path], bool]] = {
        "merge": lambda folder: check_merge(folder, arguments.nuclei, arguments.outputs.split(",")),
        "kill": lambda folder: check_kills(folder, arguments.times),
        "seams": lambda folder: check_seams(folder, arguments.shardings),
    }
    with tempfile.TemporaryDirectory() as folder:
        return 0 if checks[arguments.check](Path(folder)) else 1


def check_merge(folder: Path, nuclei: int, kinds: list[str]) -> bool:
    """Merge shards of round nuclei, 2 % of which two shards report; at most 30 CPU seconds and 1 GB."""
    per_shard = 4000
    side = int(np.ceil(np.sqrt(nuclei / per_shard)))
    y, x = np.mgrid[:24, :24]
    disc = (x - 11) ** 2 + (y - 11) ** 2 < 90
    tiles = SHARD_PX // 63
    truth = np.zeros((SHARD_PX, SHARD_PX), dtype=np.int32)
    for n in range(per_shard):
        row, column = divmod(n, tiles)
        truth[row * 63 : row * 63 + 24, column * 63 : column * 63 + 24] = disc * (n + 1)
    prediction = prediction_from_instances(truth)
    measured = measure(truth, prediction.table["id"], np.zeros((*truth.shape, 3), np.uint8), 0, 0)
    journal = Journal(folder / "slide")
    journal.folder.mkdir()
    cells = np.ones((side * 21, side * 21), dtype=bool)
    size = side * SHARD_PX
    grid = {"level": 0, "mpp": 0.25, "scale": 1.0, "width": size, "height": size, "resampled": False}
    request = {"slide": {"name": "million"}, "mpp": {"value": 0.25, "source": "given"}, "method": {}}
    request["options"] = {"outputs": kinds}
    plan = {"request": request, "grid": grid, "shard_cells": 21, "tissue_mm2": 1.0, "bounds": [0, 0, 0, 0]}
    plan["thumbnail_mpp"] = 8.0
    thumbnail = np.full((side * 126, side * 126, 3), 240, dtype=np.uint8)
    journal.write_plan(plan, thumbnail[..., 0] > 0, cells, thumbnail)
    facts = {"plan": journal.digest, "unreadable": [], "mm2": 1.0, "nuclei": per_shard}
    for shard in cut_shards(cells, 21):
        origin = (shard.column * STRIDE_PX, shard.row * STRIDE_PX)
        table = nuclei_rows(prediction, measured, origin=origin, scale=1.0, mpp=0.25, shard=shard.index)
        spare = table.slice(0, 80)  # the neighbour's view of the nuclei at the border
        border = np.arange(len(table)) < 80
        table = table.append_column("own", pa.array(np.ones(len(table), bool)))
        table = table.append_column("crossing", pa.array(border))
        neighbour = spare.append_column("own", pa.array(np.zeros(80, bool)))
        neighbour = neighbour.append_column("crossing", pa.array(np.ones(80, bool)))
        journal.write_shard(shard.index, pa.concat_tables([table, neighbour]), facts)
    script = "import sys, pathlib, nucsam_monai.wsi as w; w.merge_slide(w.Journal(pathlib.Path(sys.argv[1])))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(journal.folder)], check=True)  # noqa: S603
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    found_n = json.loads((journal.folder / "statistics.json").read_text())["nuclei"]
    files = json.loads(journal.done_file.read_text(encoding="utf-8"))["files"]
    megabytes = sum(file["bytes"] for file in files.values()) / 1e6
    wall_s, peak_gb = time.perf_counter() - start, used.ru_maxrss / 1e6
    print(f"{found_n} nuclei: {cpu_s:.1f} CPU s, {wall_s:.1f} s, {peak_gb:.2f} GB, files {megabytes:.0f} MB")
    return cpu_s <= 30 and used.ru_maxrss <= 1e6


def check_kills(folder: Path, times: int) -> bool:
    """Kill a run at random moments, also in the merge, and compare what comes out in the end."""
    slide = folder / "slide.png"
    Image.fromarray(picture_of(random_nuclei(900, 600, seed=3))).save(slide)
    segment_slide(slide, folder / "whole", oracle(), OPTIONS)
    duration_s = segment_slide(slide, folder / "again", oracle(), OPTIONS).seconds
    expected = outputs(folder / "whole" / "slide")
    generator = np.random.default_rng(1)
    killed, equal, redone = 0, 0, 0
    while killed < times:
        output = folder / f"run{killed}"
        process = subprocess.Popen([sys.executable, "-c", WORK, slide, output], stdout=subprocess.PIPE)  # noqa: S603
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
        time.sleep(float(generator.uniform(0.0, 1.1) * duration_s))
        process.kill()
        finished_before = process.wait() == 0
        process.stdout.close()
        killed += not finished_before
        shards = output / "slide" / "shards"
        stamps = {
            file: file.stat().st_mtime_ns
            for file in shards.glob("*.parquet")
            if not file.name.startswith(".")
        }
        segment_slide(slide, output, oracle(), OPTIONS)
        redone += sum(file.stat().st_mtime_ns != stamp for file, stamp in stamps.items())
        result = outputs(output / "slide")
        different = [name for name, content in expected.items() if result.get(name) != content]
        equal += not different and not finished_before
        state = "finished" if finished_before else "killed"
        print(f"{state} with {len(stamps)} shards done; different: {different}", flush=True)
    print(f"{equal} of {killed} killed runs end in the same bytes; {redone} finished shards were done again")
    return equal == killed and redone == 0


def check_seams(folder: Path, shardings: int) -> bool:
    """Cut one slide of 10,000 nuclei in many ways: none may be lost or doubled."""
    truth = random_nuclei(3200, 10_000, seed=1)
    slide = folder / "slide.png"
    picture = picture_of(truth)
    generator = np.random.default_rng(2)
    lost = doubled = 0
    for n in range(shardings):
        # The slide is shifted against the lattice, and cut into shards of any side.
        shift = generator.integers(0, 48, 2)
        shifted = np.full((3248, 3248, 3), 255, dtype=np.uint8)
        shifted[shift[0] : shift[0] + 3200, shift[1] : shift[1] + 3200] = picture
        Image.fromarray(shifted).save(slide, compress_level=1)
        side = 48 * int(generator.integers(6, 40))
        nuclei = found(slide, folder / str(n), side)
        moved = {
            (area, x + 2 * int(shift[1]), y + 2 * int(shift[0])) for area, x, y in areas_and_places(truth)
        }
        lost += len(moved - set(nuclei))
        doubled += len(nuclei) - len(set(nuclei))
        if (n + 1) % 20 == 0:
            print(f"{n + 1} shardings: {lost} lost, {doubled} doubled", flush=True)
    return lost == doubled == 0


if __name__ == "__main__":
    sys.exit(main())
