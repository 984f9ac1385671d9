"""Write everything about one segmented image."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nucsam_monai.io.geojson import ObjectType, write_geojson
from nucsam_monai.io.label_maps import write_label_image
from nucsam_monai.io.overlay import OVERLAY_PX, check_same_plane, draw_prediction, write_png
from nucsam_monai.io.table import NUCLEI_COLUMNS, nuclei_rows, write_table
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_files
from nucsam_monai.utils.label_runs import label_runs
from nucsam_monai.utils.prediction import NucleiPrediction


def write_prediction(
    prediction: NucleiPrediction,
    image: np.ndarray,
    output_dir: Path | str,
    stem: str,
    *,
    object_type: ObjectType = "detection",
    overlay_px: int = OVERLAY_PX,
) -> dict[str, Path]:
    """Write the label image, the polygons, the table and the overlay of one image.

    Everything is checked before the first file is written, and the files appear together, complete or not at all.
    Outlines in the overlay are coloured by class, or by nucleus with a single class.

    Args:
        prediction: the nuclei; none at all is fine.
        image: ``(H, W, 3)`` uint8 RGB, the image that was segmented.
        output_dir: made if missing.
        stem: start of the files' names, see :func:`nucsam_monai.io.images.output_stems`.
        object_type: QuPath's kind of object in the GeoJSON file.
        overlay_px: longest side of the overlay, to which larger images are reduced; 0 writes none.

    Returns:
        The written paths by kind: ``instances`` (``<stem>_instances.tif``), ``geojson``
        (``<stem>.geojson``), ``table`` (``<stem>_nuclei.csv``) and, unless switched off, ``overlay``
        (``<stem>_overlay.png``).

    Raises:
        ConfigurationError: image, label map and table do not belong together, ``stem`` is not a file name, or
            ``overlay_px`` is below 0.
        OutputError: a file can't be written.
    """
    _check(prediction, image, stem)
    names = prediction_files(stem)
    overlay = draw_prediction(prediction, image, overlay_px) if overlay_px else None
    if overlay is None:
        del names["overlay"]
    # Compression leaves the interpreter free, so the pictures are written while the texts are.
    with atomic_files(output_dir, names) as paths, ThreadPoolExecutor(max_workers=2) as pool:
        pictures = [pool.submit(write_label_image, paths["instances"], prediction.instances)]
        if overlay is not None:
            pictures.append(pool.submit(write_png, paths["overlay"], overlay))
        write_geojson(paths["geojson"], prediction, name=stem, object_type=object_type)
        write_table(paths["table"], nuclei_rows(prediction), NUCLEI_COLUMNS)
        for picture in pictures:
            picture.result()
    return {kind: Path(output_dir) / name for kind, name in names.items()}


def prediction_files(stem: str) -> dict[str, str]:
    """Return the names of the files of one image by kind."""
    return {
        "instances": f"{stem}_instances.tif",
        "geojson": f"{stem}.geojson",
        "table": f"{stem}_nuclei.csv",
        "overlay": f"{stem}_overlay.png",
    }


def _check(prediction: NucleiPrediction, image: np.ndarray, stem: str) -> None:
    """Refuse input that would fail after some files are written."""
    if stem in ("", ".", "..") or Path(stem).name != stem or "\\" in stem or "\0" in stem:
        raise ConfigurationError(f"stem: expected a plain file name without folders, found {stem!r}.")
    check_same_plane(image, prediction.instances)
    table, class_count = prediction.table, len(prediction.class_names)
    ids = np.unique(prediction.instances.ravel()[label_runs(prediction.instances).starts])
    if not np.array_equal(ids[ids != 0], table["id"]) or (len(ids) and ids[0] < 0):
        raise ConfigurationError(
            f"{stem}: the table of nuclei does not list the positive ids of the label map."
        )
    if not np.isfinite(table["score"]).all():
        raise ConfigurationError(f"{stem}: scores contain NaN or infinities.")
    unnamed = np.setdiff1d(table["class_id"], np.arange(class_count))
    if len(unnamed):
        raise ConfigurationError(
            f"{stem}: class ids {unnamed[:5].tolist()} have no name; there are {class_count} class names."
        )
