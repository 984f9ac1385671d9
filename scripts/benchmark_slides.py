"""Check whole slides at their real size: a million nuclei, twenty kills, many ways to cut a slide, speed.

Examples:
    python scripts/benchmark_slides.py merge --nuclei 1000000
    python scripts/benchmark_slides.py merge --outputs labels
    python scripts/benchmark_slides.py kill --times 20
    python scripts/benchmark_slides.py seams --shardings 200
    OMP_NUM_THREADS=1 python scripts/benchmark_slides.py cuts --slide data/monuseg/images/TCGA-2Z-A9J9-01A-01-TS1.png
    OMP_NUM_THREADS=1 python scripts/benchmark_slides.py speed
    OMP_NUM_THREADS=1 python scripts/benchmark_slides.py workers
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from nucsam_monai.io import read_image
from nucsam_monai.utils.prediction import prediction_from_instances
from nucsam_monai.wsi import Journal, SlideOptions, merge_slide, run, segment_slide
from nucsam_monai.wsi.grid import cut_shards
from nucsam_monai.wsi.nuclei_table import measure, nuclei_rows
from scripts.make_synthetic_slide import SAMPLES, write_slide
from tests.wsi.slides import oracle, picture_of, random_nuclei
from tests.wsi.test_run import OPTIONS, WORK, outputs
from tests.wsi.test_seams import check_that_every_nucleus_is_found_once

SHARD_PX, STRIDE_PX = 4032, 192
COMMAND = Path(__file__).with_name("segment_slides.py")


def main() -> int:
    """Run one check; return 0 if it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=("merge", "kill", "seams", "cuts", "speed", "workers"))
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--outputs", default="parquet,geojson,csv")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--shardings", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the nuclei and the cuts of seams")
    parser.add_argument(
        "--slide", type=Path, help="for cuts, speed and workers; an image of the samples by default"
    )
    parser.add_argument("--core_s_per_mm2", type=float, default=45.0)
    arguments = parser.parse_args()
    checks: dict[str, Callable[[Path], bool]] = {
        "merge": lambda folder: check_merge(folder, arguments.nuclei, arguments.outputs.split(",")),
        "kill": lambda folder: check_kills(folder, arguments.times),
        "seams": lambda folder: check_seams(folder, arguments.shardings, arguments.seed),
        "cuts": lambda folder: check_cuts(folder, arguments.slide),
        "speed": lambda folder: check_speed(folder, arguments.slide, arguments.core_s_per_mm2),
        "workers": lambda folder: check_workers(folder, arguments.slide),
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
    """Kill a run at random moments, a third of them in the merge, and compare what comes out in the end."""
    slide = folder / "slide.png"
    Image.fromarray(picture_of(random_nuclei(900, 600, seed=3))).save(slide)
    segment_slide(slide, folder / "whole", oracle(), OPTIONS)
    expected = outputs(folder / "whole" / "slide")
    count = len(list((folder / "whole" / "slide" / "shards").iterdir()))
    generator = np.random.default_rng(1)
    killed, in_merge, equal, redone = 0, 0, 0, 0
    while killed < times:
        output = folder / f"run{killed}"
        process = subprocess.Popen([sys.executable, "-c", WORK, slide, output], stdout=subprocess.PIPE)  # noqa: S603
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
        wait_for_shards(process, output, count if killed % 3 == 2 else int(generator.integers(0, count)))
        time.sleep(float(generator.uniform(0.0, 0.2)))
        process.kill()
        finished_before = process.wait() == 0
        process.stdout.close()
        killed += not finished_before
        stamps = {file: file.stat().st_mtime_ns for file in shards_of(output / "slide")}
        in_merge += len(stamps) == count and not finished_before
        segment_slide(slide, output, oracle(), OPTIONS)
        redone += sum(file.stat().st_mtime_ns != stamp for file, stamp in stamps.items())
        result = outputs(output / "slide")
        different = [name for name, content in expected.items() if result.get(name) != content]
        equal += not different and not finished_before
        state = "finished" if finished_before else "killed"
        print(f"{state} with {len(stamps)} of {count} shards done; different: {different}", flush=True)
    print(
        f"{equal} of {killed} killed runs, {in_merge} of them in the merge, end in the same bytes; "
        f"{redone} finished shards were done again"
    )
    return equal == killed and redone == 0


def wait_for_shards(process: subprocess.Popen[bytes], output: Path, count: int) -> None:
    """Wait until a run has finished some shards, or ended."""
    while len(shards_of(output / "slide")) < count and process.poll() is None:
        time.sleep(0.001)


def shards_of(folder: Path) -> list[Path]:
    """Return the shards of a slide that are done."""
    return [file for file in (folder / "shards").glob("*.parquet") if file.name[0] != "."]


def check_seams(folder: Path, shardings: int, seed: int) -> bool:
    """Cut one slide of 10,000 nuclei in many ways: none may be lost or doubled."""
    truth = random_nuclei(3200, 10_000, seed=seed)
    picture = picture_of(truth)
    slide = folder / "slide.tif"
    generator = np.random.default_rng(seed + 1)
    for n in range(shardings):
        # The slide is shifted against the lattice, and cut into shards of any side.
        shift = generator.integers(0, 48, 2)
        beyond = [(int(first), 48 - int(first)) for first in shift]
        shifted = np.pad(truth, beyond)
        image = np.pad(picture, [*beyond, (0, 0)], constant_values=255)
        tifffile.imwrite(slide, image, photometric="rgb")
        side = 48 * int(generator.integers(6, 40))
        check_that_every_nucleus_is_found_once(slide, shifted, folder / "output", side)
        shutil.rmtree(folder / "output")
        if (n + 1) % 20 == 0:
            print(f"{n + 1} shardings: 0 lost, 0 doubled", flush=True)
    return True


def check_cuts(folder: Path, slide: Path | None) -> bool:
    """Cut tissue in several ways: the nuclei are those of one pass, all in float32 and 99.9 % in bfloat16."""
    from nucsam_monai import load

    image = read_image(slide or tissue_slide(folder, 1000))
    Image.fromarray(image).save(folder / "slide.png")
    held = True
    for precision, least in (("fp32", 1.0), ("bf16", 0.999)):
        segmenter = load("unsam", precision=precision)
        found = segmenter.segment(image, diameter=None)
        measured = measure(found.instances, found.table["id"], image, 0, 0)
        whole = set(nuclei_rows(found, measured, origin=(0, 0), scale=1.0, mpp=0.25)["geometry"].to_pylist())
        for side in (384, 576, 768):
            output = folder / f"{precision}{side}"
            options = SlideOptions(mpp=0.25, mask="all", shard_px=side, outputs=("parquet",))
            segmenter.segment_slide(folder / "slide.png", output, slide=options)
            outlines = pq.read_table(output / "slide" / "nuclei.parquet")["geometry"].to_pylist()
            same = len(whole.intersection(outlines)) / max(len(whole), len(outlines))
            print(
                f"{precision}, shards of {side} px: {len(outlines)} nuclei, {len(whole)} in one pass, "
                f"{same:.2%} identical",
                flush=True,
            )
            held &= same >= least
    return held


def check_speed(folder: Path, slide: Path | None, most_core_s: float) -> bool:
    """Segment tissue with the weights that ship, and print the core seconds per mm2 of each stage."""
    from nucsam_monai import load

    path = slide or tissue_slide(folder, 3000)
    start_s = time.process_time()
    segmenter = load("unsam")
    segmenter.segment(read_image(SAMPLES / "images" / "breast_cancer.png")[:256, :256])
    stages = {"start and weights": time.process_time() - start_s}
    timed = run.seconds_per_tile

    def time_tiles(*arguments: Any) -> float | None:
        start_s = time.process_time()
        tile_s = timed(*arguments)
        stages["timed tiles"] = time.process_time() - start_s
        return tile_s

    run.seconds_per_tile = time_tiles
    start_s = time.process_time()
    result = segmenter.segment_slide(path, folder, slide=SlideOptions(mpp=0.25, mask="all"))
    total = time.process_time() - start_s
    journal = Journal(Path(result.folder))
    facts = [journal.facts(n) for n in range(len(shards_of(journal.folder)))]
    mm2 = sum(one["mm2"] for one in facts)
    for stage in ("read", "network", "nuclei"):
        stages[stage] = sum(one["cpu_seconds"][stage] for one in facts)
    start_s = time.process_time()
    merge_slide(journal)
    stages["merge"] = time.process_time() - start_s
    stages["plan and files of shards"] = total - sum(list(stages.values())[1:])
    for stage, cpu_s in stages.items():
        print(f"{stage}: {cpu_s:.2f} core s, {cpu_s / mm2:.2f} per mm2")
    rest = (total - stages["network"] - stages["timed tiles"]) / mm2
    print(
        f"{result.nuclei} nuclei on {mm2:.2f} mm2: {total / mm2:.1f} core s per mm2, {rest:.1f} without the network, "
        f"{total + stages['start and weights']:.1f} core s with the start"
    )
    return total / mm2 <= most_core_s and rest <= most_core_s / 9


def check_workers(folder: Path, slide: Path | None) -> bool:
    """Compare two workers with one, and with two runs that share nothing but the machine; open a finished slide again.

    On a machine where two such runs are not twice as fast as one after the other, two workers cannot be either.
    """
    path = slide or tissue_slide(folder, 4500)
    command = [sys.executable, str(COMMAND), "run", "unsam", str(path)]
    options = ["--mpp", "0.25", "--mask", "all", "--shard_px", "1152"]
    runs = {"one": ["one"], "again": ["one"], "two workers": ["two"], "two runs": ["left", "right"]}
    seconds = {}
    for name, outputs_of_run in runs.items():
        more = ["--workers", "2"] if name == "two workers" else []
        start = time.perf_counter()
        started = [subprocess.Popen([*command, str(folder / one), *options, *more]) for one in outputs_of_run]  # noqa: S603
        if any(process.wait() for process in started):
            return False
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    same = outputs(folder / "one" / path.stem) == outputs(folder / "two" / path.stem)
    ratio, ceiling = seconds["one"] / seconds["two workers"], 2 * seconds["one"] / seconds["two runs"]
    print(f"two workers are {ratio:.2f} times as fast as one, two runs {ceiling:.2f}; same bytes: {same}")
    return same and ratio >= 1.7 and seconds["again"] <= 5


def tissue_slide(folder: Path, side: int) -> Path:
    """Write a slide full of tissue: one image again and again."""
    image = read_image(SAMPLES / "images" / "breast_cancer.png")
    repeats = (-(-side // image.shape[0]), -(-side // image.shape[1]), 1)
    write_slide(folder / "tissue.tif", np.tile(image, repeats)[:side, :side], 0.25, "generic")
    return folder / "tissue.tif"


if __name__ == "__main__":
    sys.exit(main())
