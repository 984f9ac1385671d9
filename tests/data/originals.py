"""Small copies of the original layouts of public datasets, with their known traps."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def box(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def dsb_members(ids: Sequence[str] = tuple("abcdefghij"), root: str = "stage1_train/") -> dict[str, bytes]:
    """One image per id with two touching nuclei; RGBA like the original."""
    members = {}
    for seed, sample_id in enumerate(ids):
        members[f"{root}{sample_id}/images/{sample_id}.png"] = png(noise(12, 10, 4, seed))
        members[f"{root}{sample_id}/masks/m1.png"] = png(box((12, 10), 1, 1, 4, 4))
        members[f"{root}{sample_id}/masks/m2.png"] = png(box((12, 10), 4, 1, 8, 4))
    return members


def aperio_xml(polygons: Sequence[Sequence[tuple[float, float]]]) -> bytes:
    regions = "".join(
        f'<Region Id="{number}"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in polygon)
        + "</Vertices></Region>"
        for number, polygon in enumerate(polygons)
    )
    return (
        '<Annotations MicronsPerPixel="0.252"><Annotation Id="1"><Regions><RegionAttributeHeaders/>'
        f"{regions}</Regions></Annotation></Annotations>"
    ).encode()


def square(left: float, top: float, size: float) -> list[tuple[float, float]]:
    return [(left, top), (left + size, top), (left + size, top + size), (left, top + size)]


CLASSIC = (
    "TCGA-18-5592-01Z-00-DX1",
    "TCGA-21-5784-01Z-00-DX1",
    "TCGA-A7-A13E-01Z-00-DX1",
    "TCGA-A7-A13F-01Z-00-DX1",
    "TCGA-NH-A8F7-01A-01-TS1",
)


def monuseg_members(ids: Sequence[str] = CLASSIC, *, as_test: bool = False) -> dict[str, bytes]:
    """Images of 20 x 30 pixels with two overlapping squares, a line and a hidden square."""
    polygons = [square(2, 3, 6), square(5, 3, 6), [(1, 1), (2, 2)], square(3, 4, 1)]
    folders = ("MoNuSegTestData",) * 2 if as_test else ("Root/Tissue Images", "Root/Annotations")
    members = {}
    for seed, sample_id in enumerate(ids):
        members[f"{folders[0]}/{sample_id}.tif"] = tiff(noise(20, 30, 3, seed))
        members[f"{folders[1]}/{sample_id}.xml"] = aperio_xml(polygons)
    return members


def nucls_members() -> dict[str, bytes]:
    """Two training tiles and one test tile with ids 2 and 9; most pixels of 9 are of class 2."""
    members = {"label_map.yaml": b'1: "Non-Tumor"\n2: "Tumor"\n'}
    for part, tile_id in (("train", "train_1"), ("train", "train_2"), ("test", "test_1")):
        instances = np.zeros((8, 8), dtype=np.uint16)
        instances[1:3, 1:3], instances[4:7, 4:7] = 9, 2
        classes = (instances > 0).astype(np.uint8)
        classes[instances == 9] = [2, 2, 2, 1]
        members[f"{part}/images/{tile_id}.png"] = png(noise(8, 8))
        members[f"{part}/instances/{tile_id}.png"] = png(instances)
        members[f"{part}/classes/{tile_id}.png"] = png(classes)
    return members
