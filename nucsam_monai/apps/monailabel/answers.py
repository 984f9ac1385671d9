"""Answer a request for an image: a label image, polygons, or both."""

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nucsam_monai.apps.monailabel.annotations import (
    ANNOTATION_FORMATS,
    AnnotationFacts,
    annotation_record,
    write_annotations,
)
from nucsam_monai.apps.monailabel.images import label_suffix, region_of_request, write_label
from nucsam_monai.apps.monailabel.model import Prepared, ServedModel
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.inferers import Clicks, clicks_in_image
from nucsam_monai.utils.image_source import ImageSource
from nucsam_monai.utils.nucleus import Nucleus, paint_nuclei

MOST_PROMPTS = 1000
STOCK_SMALLEST_PX = 80
"""MONAI Label fills this in as ``min_poly_area`` if the client names none; it would hide small nuclei."""


def has_clicks(request: Mapping[str, Any]) -> bool:
    """Return whether a request brings clicks or boxes; clients without any send empty lists."""
    return any(request.get(key) for key in ("foreground", "background", "boxes"))


def clicks_of_request(request: Mapping[str, Any], source: ImageSource) -> Clicks:
    """Read ``foreground``, ``background`` and ``boxes`` of a request.

    A click is ``[x, y]``, or ``[x, y, slice]`` as 3D Slicer sends it, in pixels of full resolution; a box is
    ``[x_min, y_min, x_max, y_max]``.

    Raises:
        RequestRefusedError: not such lists, too many, or no click and no box at all.
        ConfigurationError: outside of the image, or a box below one pixel.
    """
    foreground, background = (_points(request.get(key), key, source) for key in ("foreground", "background"))
    boxes = _scaled(request.get("boxes"), "boxes", (4,), source)
    if not foreground and not boxes:
        raise RequestRefusedError(
            "no click: expected at least one point in 'foreground' or one box in 'boxes', for example "
            '{"foreground": [[31, 40]]}.'
        )
    return clicks_in_image((source.height, source.width), foreground, background, boxes)


def _points(value: Any, key: str, source: ImageSource) -> list[list[float]]:
    return [row[:2] for row in _scaled(value, key, (2, 3), source)]


def _scaled(value: Any, key: str, lengths: tuple[int, ...], source: ImageSource) -> list[list[float]]:
    """Return rows of numbers in pixels of the source."""
    return [[one / source.downsample for one in _numbers(row, key, lengths)] for row in _rows(value, key)]


def _rows(value: Any, key: str) -> list[Any]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise RequestRefusedError(f"{key}: expected a list, found {type(value).__name__}.")
    if len(value) > MOST_PROMPTS:
        raise RequestRefusedError(
            f"{key}: {len(value)} entries, expected at most {MOST_PROMPTS} in one request."
        )
    return value


def _numbers(row: Any, key: str, lengths: tuple[int, ...]) -> list[float]:
    numbers = [one for one in row if _is_number(one)] if isinstance(row, list) else []
    if len(numbers) not in lengths or len(numbers) != len(row):
        raise RequestRefusedError(f"{key}: found {str(row)[:60]}, expected {lengths[0]} numbers.")
    return [float(one) for one in numbers]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1 << 40 and math.isfinite(value)


class Answer(NamedTuple):
    """Hold the file to send, if any, and the JSON next to it."""

    file: Path | None
    params: dict[str, Any]


def answer_with_label(model: ServedModel, request: Mapping[str, Any], path: Path, *, clicked: bool) -> Answer:
    """Segment an image or a region of it into a label image.

    Args:
        model: the bundle.
        request: options of the request; ``location`` and ``size`` select a region, ``result_extension`` the format.
        path: the image.
        clicked: whether single nuclei are requested, by clicks or boxes.

    Returns:
        The label image, whose ids count the nuclei, and the polygons.

    Raises:
        RequestRefusedError: a value of the request is not allowed, or the region is too large.
    """
    with _Task(model, request, path, clicked=clicked) as task:
        if task.region.width * task.region.height > model.opener.max_pixels:
            raise RequestRefusedError(
                f"{task.region.width} x {task.region.height} px are more than the allowed "
                f"{model.opener.max_pixels} for a label image. Ask /infer/wsi for polygons, or name a region.",
                413,
            )
        label_suffix(request.get("result_extension"), 0)
        nuclei = list(task.nuclei())
        with _result_file(label_suffix(request.get("result_extension"), len(nuclei))) as file:
            write_label(file, paint_nuclei(nuclei, (task.region.height, task.region.width)))
        record = annotation_record(nuclei, task.facts)
        scores = [round(nucleus.score, 4) for nucleus in nuclei]
        return Answer(file, {**task.params(len(nuclei)), "annotation": record, "scores": scores})


def answer_with_polygons(
    model: ServedModel, request: Mapping[str, Any], path: Path, *, clicked: bool
) -> Answer:
    """Segment a region of an image or a slide into polygons, which are written one by one.

    Args:
        model: the bundle.
        request: options as in :func:`answer_with_label`; ``output`` is ``asap``, ``dsa`` or ``json``.
        path: the image.
        clicked: whether single nuclei are requested.

    Raises:
        RequestRefusedError: a value of the request is not allowed.
    """
    kind = request.get("output") or "dsa"
    if kind not in ANNOTATION_FORMATS:
        raise RequestRefusedError(
            f"output {str(kind)[:40]!r}: expected one of {', '.join(ANNOTATION_FORMATS)}."
        )
    with _Task(model, request, path, clicked=clicked) as task:
        if kind == "json":
            record = annotation_record(task.nuclei(), task.facts)
            count = sum(len(element["contours"]) for element in record["elements"])
            return Answer(None, {**task.params(count), "annotations": [{"annotation": record}]})
        with _result_file(".xml" if kind == "asap" else ".json") as file:
            count = write_annotations(file, kind, task.nuclei(), task.facts)
        return Answer(file, task.params(count))


@contextmanager
def _result_file(suffix: str) -> Iterator[Path]:
    """Give a new file in the folder for temporary files, which an error does not leave behind."""
    handle, name = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    try:
        yield Path(name)
    except BaseException:
        Path(name).unlink()
        raise


class _Task:
    """Keep the image of one request open."""

    def __init__(self, model: ServedModel, request: Mapping[str, Any], path: Path, *, clicked: bool) -> None:
        if has_clicks(request) and not clicked:
            raise RequestRefusedError(
                f"{model.name}: segments whole images, but the request brings clicks. Ask '{model.name}_click' for "
                "single nuclei."
                if model.takes_clicks
                else f"{model.name}: takes no clicks. Leave them out."
            )
        self.model = model
        self.request = request
        self.clicked = clicked
        self.prepared: Prepared = model.prepare(request)
        self.started = time.perf_counter()
        self.source: ImageSource = model.opener.open(path, _level(request))
        try:
            self.region = region_of_request(request, self.source)
            self.facts = self._facts()
        except RequestRefusedError:
            self.source.close()
            raise

    def __enter__(self) -> "_Task":
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def nuclei(self) -> Iterator[Nucleus]:
        """Yield the nuclei in pixels of the region."""
        if not self.clicked:
            yield from self.model.nuclei(self.prepared, self.source, self.region)
            return
        clicks = clicks_of_request(self.request, self.source)
        class_id = self._clicked_class()
        for nucleus in self.model.clicked_nuclei(self.prepared, self.source, clicks):
            inside = nucleus.moved(-self.region.x, -self.region.y).cut_off(
                self.region.width, self.region.height
            )
            if inside.mask.size:
                yield replace(inside, class_id=class_id)

    def params(self, count: int) -> dict[str, Any]:
        """Return the JSON next to the file."""
        seconds = round(time.perf_counter() - self.started, 3)
        return {
            "model": self.model.name,
            "location": list(self.facts.location),
            "size": list(self.facts.size),
            "nuclei": count,
            "label_names": {name: number for number, name in enumerate(self.facts.class_names, start=1)},
            "latencies": {"total": seconds},
        }

    def _clicked_class(self) -> int:
        """Return the class that the annotator chose as ``label``; clients also send names of their own there."""
        names, label = self.facts.class_names, self.request.get("label")
        return list(names).index(str(label)) if label in names else 0

    def _facts(self) -> AnnotationFacts:
        scale = self.source.downsample
        smallest = self.request.get("min_poly_area", 0)
        is_number = isinstance(smallest, (int, float)) and not isinstance(smallest, bool)
        if not is_number or not 0 <= smallest < 1 << 40:
            raise RequestRefusedError(f"min_poly_area {str(smallest)[:40]}: expected a number of pixels.")
        return AnnotationFacts(
            model=self.model.name,
            class_names=self.prepared.bundle.class_names,
            location=(round(self.region.x * scale), round(self.region.y * scale)),
            size=(round(self.region.width * scale), round(self.region.height * scale)),
            scale=scale,
            smallest_px=0 if smallest == STOCK_SMALLEST_PX else int(smallest),
        )


def _level(request: Mapping[str, Any]) -> int:
    level = request.get("level", 0)
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise RequestRefusedError(f"level {str(level)[:40]}: expected a whole number from 0 on.")
    return level
