"""Show segmented images and slides in a browser.

The page shows outlines, scores, a table and filters, and loads nothing from
the network. Only this machine can open it.

Example:
    nucsam view output/segmented --images images
    nucsam view output/slides --images slides
"""

import argparse
import io
import json
import logging
import sys
import webbrowser
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from PIL import Image

from nucsam_monai.io import read_image
from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

TILE_PX = 512
OUTLINES_AT_ONCE = 4000
"""Nuclei of a view that are drawn with their outlines; of more a sample is drawn as dots."""

_DOTS_AT_ONCE = 20_000
_LOCAL = ("127.0.0.1", "localhost")
_PAGE = Path(__file__).with_name("viewer.html")

Ring = list[list[float]]

logger = logging.getLogger(__name__)


class Nuclei:
    """Hold the columns of a table of nuclei.

    Attributes:
        columns: ``id``, ``class_id``, ``score``, ``area``, ``x`` and ``y``, each ``(n,)``; area in pixels or square
            micrometres, x and y in pixels of the finest level.
        class_names: names of the classes, indexed by ``class_id``.
    """

    def __init__(self, columns: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
        self.columns = columns
        self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def passing(self, query: dict[str, list[str]]) -> np.ndarray:
        """Return the indices of rows that pass the filters ``score``, ``least``, ``most`` (area) and ``classes``."""
        keep = self.columns["score"] >= _number(query, "score", 0.0)
        low, high = (_number(query, name, limit) for name, limit in (("least", 0.0), ("most", np.inf)))
        keep &= (self.columns["area"] >= low) & (self.columns["area"] <= high)
        if "classes" in query:
            chosen = [int(text) for text in query["classes"][0].split(",") if text]
            keep &= np.isin(self.columns["class_id"], chosen)
        return np.flatnonzero(keep)

    def rows(self, indices: np.ndarray) -> list[list[float]]:
        """Return ``[index, id, class_id, score, area, x, y]`` of the given rows."""
        names = ("id", "class_id", "score", "area", "x", "y")
        return np.column_stack([indices, *(self.columns[name][indices] for name in names)]).round(4).tolist()


class Result(ABC):
    """Provide the pixels and nuclei of one segmented image or slide.

    Attributes:
        name: name of the image.
        unit: unit of areas.
        mpp: micrometres per pixel of the finest level; None if unknown.
    """

    unit = "px"
    mpp: float | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = Lock()

    @property
    @abstractmethod
    def nuclei(self) -> Nuclei:
        """The table of nuclei."""

    @abstractmethod
    def outlines(self, indices: np.ndarray) -> list[list[Ring]]:
        """Return the outline rings of the given nuclei, in pixels of the finest level."""

    @property
    @abstractmethod
    def levels(self) -> list[tuple[int, int, float]]:
        """Width and height in pixels and downsampling factor of each level, finest first."""

    @abstractmethod
    def pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a rectangle of a level as ``(height, width, 3)`` uint8."""

    def describe(self) -> dict[str, Any]:
        """Return what the page needs before it draws: sizes, classes, colours and units."""
        nuclei, areas = self.nuclei, self.nuclei.columns["area"]
        return {
            "name": self.name,
            "levels": self.levels,
            "nuclei": len(nuclei),
            "classes": nuclei.class_names,
            "colours": colours_of(np.arange(len(nuclei.class_names))).tolist(),
            "unit": self.unit,
            "mpp": self.mpp,
            "largest": float(areas.max()) if len(nuclei) else 1.0,
        }

    def view(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Return the nuclei in the rectangle ``box`` that pass the filters, with outlines unless they are too many."""
        x_min, y_min, x_max, y_max = (float(text) for text in query["box"][0].split(","))
        passing = self.nuclei.passing(query)
        x, y = self.nuclei.columns["x"][passing], self.nuclei.columns["y"][passing]
        seen = passing[(x >= x_min) & (x < x_max) & (y >= y_min) & (y < y_max)]
        few = len(seen) <= OUTLINES_AT_ONCE
        drawn = seen if few else seen[:: -(-len(seen) // _DOTS_AT_ONCE)]
        answer = {"passing": len(passing), "seen": len(seen), "rows": self.nuclei.rows(drawn)}
        with self.lock:
            return answer | ({"outlines": self.outlines(drawn)} if few else {})

    def table(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Return ``count`` rows that pass the filters, sorted by the column ``sort``, descending if ``down`` is 1."""
        passing = self.nuclei.passing(query)
        order = np.argsort(self.nuclei.columns[query["sort"][0]][passing], kind="stable")
        ordered = passing[order[::-1] if query.get("down") == ["1"] else order]
        first, count = int(_number(query, "first", 0)), int(_number(query, "count", 100))
        return {"passing": len(passing), "rows": self.nuclei.rows(ordered[first : first + count])}

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Encode a tile of a level as JPEG."""
        width, height, _ = self.levels[level]
        x, y = column * TILE_PX, row * TILE_PX
        with self.lock:
            pixels = self.pixels(level, x, y, min(TILE_PX, width - x), min(TILE_PX, height - y))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


class ImageResult(Result):
    """Read the results of one image, as written by ``nucsam segment`` or ``SegmentedImage.save``.

    Args:
        geojson: file with the nuclei.
        image: the image. Default: the overlay next to the GeoJSON file.
    """

    def __init__(self, geojson: Path, image: Path | None) -> None:
        super().__init__(geojson.stem)
        self._geojson = geojson
        self._image = image or geojson.with_name(f"{geojson.stem}_overlay.png")

    @cached_property
    def _features(self) -> list[dict[str, Any]]:
        features: list[dict[str, Any]] = json.loads(self._geojson.read_text(encoding="utf-8"))["features"]
        return features

    @cached_property
    def nuclei(self) -> Nuclei:
        """See :attr:`Result.nuclei`."""
        properties = [feature["properties"] for feature in self._features]
        names = sorted({one["classification"]["name"] for one in properties}) or ["nucleus"]
        centres = [np.mean(rings[0][:-1], axis=0) for rings in self.outlines(np.arange(len(properties)))]
        measured = [one["measurements"] for one in properties]
        columns = {
            "id": np.array([one["id"] for one in measured], dtype=np.int64),
            "class_id": np.array(
                [names.index(one["classification"]["name"]) for one in properties], dtype=int
            ),
            "score": np.array([one["score"] for one in measured], dtype=float),
            "area": np.array([one["area_px"] for one in measured], dtype=float),
            "x": np.array([centre[0] for centre in centres], dtype=float),
            "y": np.array([centre[1] for centre in centres], dtype=float),
        }
        return Nuclei(columns, names)

    def outlines(self, indices: np.ndarray) -> list[list[Ring]]:
        """See :meth:`Result.outlines`."""
        found = []
        for index in indices:
            geometry = self._features[index]["geometry"]
            polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
            found.append([ring for polygon in polygons for ring in polygon])
        return found

    @cached_property
    def _pyramid(self) -> list[np.ndarray]:
        levels = [read_image(self._image)]
        while max(levels[-1].shape[:2]) > 2 * TILE_PX:
            height, width = (max(side // 2, 1) for side in levels[-1].shape[:2])
            levels.append(cv2.resize(levels[-1], (width, height), interpolation=cv2.INTER_AREA))
        return levels

    @property
    def levels(self) -> list[tuple[int, int, float]]:
        """See :attr:`Result.levels`."""
        full = self._pyramid[0].shape[1]
        return [(level.shape[1], level.shape[0], full / level.shape[1]) for level in self._pyramid]

    def pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See :meth:`Result.pixels`."""
        return self._pyramid[level][y : y + height, x : x + width]


class SlideResult(Result):
    """Read the results of one slide, as written by ``nucsam slides run``; needs the extra ``slides``.

    Args:
        folder: folder with the results of the slide.
        slide: slide file.
    """

    unit = "µm²"

    def __init__(self, folder: Path, slide: Path) -> None:
        super().__init__(folder.name)
        self._folder = folder
        self._slide = slide
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        self.mpp = float(plan["request"]["mpp"]["value"])

    @cached_property
    def _reader(self) -> Any:
        from nucsam_monai.wsi import open_slide

        return open_slide(self._slide)

    @cached_property
    def _table(self) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self._folder / "nuclei.parquet")

    @cached_property
    def nuclei(self) -> Nuclei:
        """See :attr:`Result.nuclei`."""
        table = self._table
        box = {
            name: table["bbox"].combine_chunks().field(name).to_numpy()
            for name in ("xmin", "ymin", "xmax", "ymax")
        }
        columns = {name: table[name].to_numpy() for name in ("id", "class_id", "score")}
        columns["area"] = table["area_um2"].to_numpy()
        columns["x"], columns["y"] = (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2
        names = dict(zip(columns["class_id"].tolist(), table["class_name"].to_pylist(), strict=True))
        return Nuclei(
            columns, [names.get(number, str(number)) for number in range(max(names, default=0) + 1)]
        )

    def outlines(self, indices: np.ndarray) -> list[list[Ring]]:
        """See :meth:`Result.outlines`."""
        import shapely

        found = []
        for outline in shapely.from_wkb(self._table["geometry"].take(indices).to_numpy()):
            polygons = getattr(outline, "geoms", [outline])
            rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
            found.append([[list(point) for point in ring.coords] for ring in rings])
        return found

    @property
    def levels(self) -> list[tuple[int, int, float]]:
        """See :attr:`Result.levels`."""
        return [tuple(level) for level in self._reader.levels]

    def pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See :meth:`Result.pixels`."""
        pixels: np.ndarray = self._reader.read(level, x, y, width, height)
        return pixels


def find_results(folder: Path, images: Path | None = None) -> list[Result]:
    """Find the results in a folder.

    Args:
        folder: output folder of ``nucsam segment`` or ``nucsam slides``.
        images: the segmented image or slide, or their folder. Results of images that are not there are shown on their
            overlay.

    Raises:
        ConfigurationError: the folder holds no results, or the slide of a result is missing.
    """
    sources = {} if images is None else {file.stem: file for file in _files(images)}
    results: list[Result] = []
    for file in sorted(folder.glob("*.geojson")):
        results.append(ImageResult(file, sources.get(file.stem)))
    for done in sorted((*folder.glob("DONE.json"), *folder.glob("*/DONE.json"))):
        slide = sources.get(done.parent.name)
        if slide is None:
            raise ConfigurationError(
                f"{done.parent.name}: the slide is missing. Pass --images with the slide or its folder."
            )
        results.append(SlideResult(done.parent, slide))
    if not results:
        raise ConfigurationError(
            f"{folder}: no results in it. Pass the output folder of 'nucsam segment' or 'nucsam slides'."
        )
    return results


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise ConfigurationError(f"--images {place}: no such file or folder.")
    return sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]


def _number(query: dict[str, list[str]], name: str, default: float) -> float:
    return float(query[name][0]) if query.get(name, [""])[0] else default


class _Handler(BaseHTTPRequestHandler):
    """Answer the page's requests."""

    def __init__(self, results: Sequence[Result], *arguments: Any) -> None:
        self.results = results
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with the page, a list, a tile, or nuclei."""
        address = urlsplit(self.path)
        host = self.headers.get("Host", "").partition(":")[0]
        if host not in _LOCAL:  # a page elsewhere, whose name leads here
            self.send_error(403)
            return
        try:
            kind, content = self._answer(address.path.strip("/").split("/"), parse_qs(address.query))
        except NucSAMError as error:
            self.send_error(500, str(error).encode("ascii", "replace").decode())
        except (LookupError, ValueError):
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _answer(self, parts: list[str], query: dict[str, list[str]]) -> tuple[str, bytes]:
        if parts == [""]:
            return "text/html; charset=utf-8", _PAGE.read_bytes()
        if parts == ["results"]:
            return _json([result.name for result in self.results])
        number, what, *rest = parts
        result = self.results[int(number)]
        if what == "tile":
            level, column, row = (int(text) for text in rest)
            return "image/jpeg", result.tile(level, column, row)
        if what not in ("describe", "view", "table"):
            raise LookupError(what)
        return _json(result.describe() if what == "describe" else getattr(result, what)(query))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log requests at the level DEBUG."""
        logger.debug(format, *arguments)


def _json(document: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(document, separators=(",", ":")).encode()


def serve(results: Sequence[Result], port: int = 0) -> ThreadingHTTPServer:
    """Create a server of results on 127.0.0.1; port 0 takes a free port."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, results))  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a folder of results until Ctrl+C; return the exit code."""
    parser = argparse.ArgumentParser(
        "nucsam view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output folder of 'nucsam segment' or 'nucsam slides'")
    parser.add_argument(
        "--images", type=Path, help="the segmented image or slide, or their folder; needed for slides"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: any free port)")
    parser.add_argument("--no_browser", action="store_true", help="only print the address")
    given = parser.parse_args(arguments)
    try:
        server = serve(find_results(given.folder, given.images), given.port)
    except (NucSAMError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    sys.stdout.write(f"{address}  (Ctrl+C ends it)\n")
    sys.stdout.flush()
    if not given.no_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
