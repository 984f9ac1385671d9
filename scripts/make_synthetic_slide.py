"""Make a slide with known nuclei: a mosaic of annotated images on glass, and its truth as outlines.

Example:
    python scripts/make_synthetic_slide.py --dataset data/monuseg --size 6000 --output case.tif
    python scripts/segment_slides.py run unsam case.tif output/slides
    python scripts/segment_slides.py evaluate output/slides/case case_truth.parquet
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import prediction_from_instances
from nucsam_monai.wsi.nuclei_table import SCHEMA, geo_metadata, measure, nuclei_rows

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "samples"
KINDS = ("generic", "svs", "ome", "nompp", "holes")
GLASS, NOISE, MARGIN_PX, LEVELS = 243, 1.5, 512, 3


def main() -> None:
    """Write the slide and ``<stem>_truth.parquet`` next to it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, default=SAMPLES, help="folder with images/ and instances/")
    parser.add_argument("--match", default="", help="only images whose path contains this text")
    parser.add_argument("--size", type=int, default=4000, help="side of the slide in pixels")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--kind", choices=KINDS, default="generic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = annotated_images(arguments.dataset, arguments.match)
    image, truth = mosaic(pairs, arguments.size, arguments.seed)
    write_slide(arguments.output, image, arguments.mpp, arguments.kind)
    name = f"{arguments.output.name.split('.')[0]}_truth.parquet"
    count = write_truth(arguments.output.with_name(name), image, truth, arguments.mpp)
    print(f"{arguments.output}: {arguments.size} x {arguments.size} px, {count} nuclei")


def annotated_images(folder: Path, match: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the images of a dataset's folder and their label maps, paired by their names."""
    labels = {file.stem: file for file in (folder / "instances").rglob("*") if file.is_file()}
    images = [
        file for file in sorted((folder / "images").rglob("*")) if file.stem in labels and match in str(file)
    ]
    if not images:
        named = f" whose path contains '{match}'" if match else ""
        raise SystemExit(
            f"{folder}: no images with label maps{named}. Name a folder with images/ and instances/."
        )
    return [(read_image(file), read_label_map(labels[file.stem])) for file in images]


def mosaic(pairs: list[tuple[np.ndarray, np.ndarray]], side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay turned and mirrored images next to one another, with glass around them and between the rows."""
    generator = np.random.default_rng(seed)
    image = generator.normal(GLASS, NOISE, (side, side, 3)).clip(0, 255).astype(np.uint8)
    truth = np.zeros((side, side), dtype=np.int32)
    y = margin = min(MARGIN_PX, side // 8)
    first = 0
    while y < side - margin:
        x, height = margin, 0
        while x < side - margin:
            pixels, labels = pairs[int(generator.integers(len(pairs)))]
            turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
            pixels, labels = np.rot90(pixels, turns), np.rot90(labels, turns)
            if mirrored:
                pixels, labels = pixels[:, ::-1], labels[:, ::-1]
            rows, columns = min(len(labels), side - margin - y), min(labels.shape[1], side - margin - x)
            image[y : y + rows, x : x + columns] = pixels[:rows, :columns]
            piece = labels[:rows, :columns].astype(np.int32)
            truth[y : y + rows, x : x + columns] = np.where(piece > 0, piece + first, 0)
            first += int(piece.max(initial=0))
            x, height = x + columns, max(height, rows)
        y += height + (64 if generator.random() < 0.5 else 0)
    return image, truth


def write_slide(path: Path, image: np.ndarray, mpp: float, kind: str) -> None:
    """Write a tiled pyramid in the manner of a scanner, compressed with JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
    options["compressionargs"] = {"level": 90}
    ome = kind == "ome"
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=ome) as file:
        for level in range(LEVELS):
            step = 4**level
            own: dict[str, Any] = {"subfiletype": 1} if level and kind != "svs" else {}
            if ome and not level:
                physical = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
                own |= {"subifds": LEVELS - 1, "metadata": {"axes": "YXS", **physical}}
            elif kind == "svs":
                own |= {"description": f"Aperio Image Library\n|AppMag = 40|MPP = {mpp}", "metadata": None}
            elif not ome:
                own["metadata"] = None
            if kind in ("generic", "holes"):
                own |= {"resolution": (1e4 / mpp / step,) * 2, "resolutionunit": "CENTIMETER"}
            file.write(np.ascontiguousarray(image[::step, ::step]), **options, **own)
    if kind == "holes":
        break_tiles(path)


def break_tiles(path: Path, count: int = 2) -> None:
    """Fill some JPEG tiles of the finest level with zeros."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offsets, sizes = page.dataoffsets, page.databytecounts  # type: ignore[union-attr]
    middle = len(offsets) // 2
    with path.open("r+b") as file:
        for tile in range(middle, middle + count):
            file.seek(offsets[tile])
            file.write(b"\0" * sizes[tile])


def write_truth(path: Path, image: np.ndarray, truth: np.ndarray, mpp: float) -> int:
    """Write the nuclei as GeoParquet; return their number."""
    prediction = prediction_from_instances(truth)
    measured = measure(truth, prediction.table["id"], image, 0, 0)
    table = nuclei_rows(prediction, measured, origin=(0, 0), scale=1.0, mpp=mpp)
    ids = pa.array(np.arange(1, len(table) + 1, dtype=np.int64))
    table = table.set_column(0, SCHEMA.field("id"), ids).replace_schema_metadata(geo_metadata())
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return len(table)


if __name__ == "__main__":
    main()
