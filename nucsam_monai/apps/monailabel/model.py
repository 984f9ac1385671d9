"""Offer one bundle on the server: its weights, its options, whole images, regions and clicks."""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch

from nucsam_monai.apps.monailabel.images import ImageOpener, reader_of
from nucsam_monai.apps.monailabel.options import Choice, Option, OptionValue, options_of, read_options
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.apps.monailabel.settings import AppSettings
from nucsam_monai.inferers import Clicks
from nucsam_monai.io import write_json
from nucsam_monai.segmenter import Segmenter, read_inference_config, takes_prompts
from nucsam_monai.utils.image_source import ImageSource, Region
from nucsam_monai.utils.nucleus import Nucleus, nuclei_of_prediction
from nucsam_monai.wsi.bundles import method_of
from nucsam_monai.wsi.regions import nuclei_of_region

logger = logging.getLogger(__name__)

ORIGINAL = "original"
"""Name of the weights that the server was started with."""

RUN_FILE = "run.json"
_SERVED_FILE = "served.json"
LEAST_SHARE = 0.1
FEWEST_NUCLEI = 5
SAMPLE_PX = 1024
ANY_DOMAIN = "automatic"
_BUNDLES_KEPT = 2
_OF_SERVER = ("device", "weights", "domain", "points_in_tiles")


@dataclass(frozen=True)
class BundleRuns:
    """Find the runs of one bundle.

    A run is a folder with its weights and ``run.json``, which is written last. Runs are only added; the weights
    that the server was started with are elsewhere and never touched.

    Attributes:
        folder: folder with all runs of the bundle.
        original: the weights that the server was started with.
        single_file: whether the weights of the bundle are one file ``model.safetensors``; else the run's folder
            is what stands for them.
    """

    folder: Path
    original: Path | None
    single_file: bool

    def names(self) -> list[str]:
        """Return the complete runs, the newest first."""
        if not self.folder.is_dir():
            return []
        complete = (file.parent.name for file in self.folder.glob(f"*/{RUN_FILE}"))
        return sorted((name for name in complete if not name.startswith(".")), reverse=True)

    def choices(self) -> tuple[str, ...]:
        """Return the names of all weights, those that are served first."""
        served = self.served()
        known = [*([ORIGINAL] if self.has_original else []), *self.names()]
        return (served, *(name for name in known if name != served)) if served in known else tuple(known)

    @property
    def has_original(self) -> bool:
        """Return whether there are weights besides those of the runs."""
        return self.original is not None and self.original.exists()

    def served(self) -> str:
        """Return the name of the weights for requests that name none."""
        try:
            name = json.loads((self.folder / _SERVED_FILE).read_text(encoding="utf-8"))["run"]
        except FileNotFoundError:
            return ORIGINAL
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("%s: cannot be read (%s); the original weights are served.", self.folder, error)
            return ORIGINAL
        return name if name in self.names() else ORIGINAL

    def serve(self, name: str) -> None:
        """Serve other weights from now on.

        Raises:
            RequestRefusedError: there are none of this name.
        """
        self.weights(name)
        write_json(self.folder / _SERVED_FILE, {"run": name})
        logger.info("%s: serves the weights '%s' from now on", self.folder.name, name)

    def weights(self, name: str) -> Path:
        """Return the weights of a run, or the original ones.

        Raises:
            RequestRefusedError: there are none of this name.
        """
        if name == ORIGINAL and self.original is not None and self.has_original:
            return self.original
        if name not in self.names():
            raise RequestRefusedError(
                f"weights '{name[:100]}': expected one of {', '.join(self.choices()) or 'none'}."
            )
        return self.weights_in(self.folder / name)

    def weights_in(self, run_dir: Path) -> Path:
        """Return what stands for the weights in the folder of a run."""
        return run_dir / "model.safetensors" if self.single_file else run_dir

    def new_name(self, now: datetime) -> str:
        """Return a name that no run has, from the time."""
        name = plain = now.strftime("%Y%m%d-%H%M%S")
        number = 2
        while (self.folder / name).exists():
            name, number = f"{plain}-{number}", number + 1
        return name


def write_run_facts(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Mark a run as complete."""
    write_json(run_dir / RUN_FILE, dict(facts))


def uncertainty(scores: Iterable[float]) -> float:
    """Return how uncertain the least certain nuclei of an image are, from 0 to 1.

    It is 1 minus the mean score of the tenth of the nuclei with the lowest scores, at least five of them. An
    image without nuclei has 0: there is nothing to correct that the model knows of.

    Example:
        >>> uncertainty([0.5, 1.0, 1.0])
        0.16666666666666663
        >>> uncertainty([])
        0.0
    """
    ranked = np.sort(np.fromiter(scores, dtype=np.float64))
    if not len(ranked):
        return 0.0
    least = ranked[: max(FEWEST_NUCLEI, round(LEAST_SHARE * len(ranked)))]
    return float(1 - np.clip(least, 0, 1).mean())


def sample_region(source: ImageSource) -> Region:
    """Return the middle of an image, at most :data:`SAMPLE_PX` each way: enough to judge a slide by."""
    width, height = min(source.width, SAMPLE_PX), min(source.height, SAMPLE_PX)
    return Region((source.width - width) // 2, (source.height - height) // 2, width, height)


class Prepared(NamedTuple):
    """Hold what a request asks for: weights on a device, options of the bundle, and the domain if known."""

    bundle: Segmenter
    options: dict[str, OptionValue]
    domain: str | None


class ServedModel:
    """Serve one bundle.

    Args:
        name: name of the bundle.
        settings: settings of the application.
        opener: reads images.
    """

    def __init__(self, name: str, settings: AppSettings, opener: ImageOpener) -> None:
        self.name = name
        self.settings = settings
        self.opener = opener
        self.folder = settings.bundles[name]
        self.config = read_inference_config(self.folder)
        self.own = dict(settings.bundle_settings.get(name, {}))
        start = self.own.pop("checkpoint", None)
        self.runs = BundleRuns(
            folder=settings.runs_dir / name,
            original=Path(str(start)).absolute() if start else self._default_weights(),
            single_file=".safetensors" in str(self.config.get("checkpoint", "")),
        )
        self._ready: OrderedDict[tuple[str, str], Segmenter] = OrderedDict()
        self._lock = RLock()

    @property
    def has_weights(self) -> bool:
        """Return whether there are any weights to answer with."""
        return bool(self.runs.choices())

    @property
    def takes_clicks(self) -> bool:
        """Return whether the network can be prompted for single nuclei, without building it."""
        return takes_prompts(self.config)

    def options(self) -> tuple[Option, ...]:
        """Return what clients show."""
        bundle = self._default()
        options: list[Option] = [Choice("device", tuple(devices())), Choice("weights", self.runs.choices())]
        if domains := bundle.domains:
            options.append(Choice("domain", (ANY_DOMAIN, *domains, "mean")))
        return (*options, *(one for one in options_of(bundle) if one.name not in _OF_SERVER))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes of the weights that are served."""
        return self._default().class_names

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the domains of the weights that are served; none for methods without domains."""
        return self._default().domains

    def bundle(self, weights: str, device: str) -> Segmenter:
        """Return the bundle with its weights on a device.

        Raises:
            RequestRefusedError: there are no such weights.
        """
        with self._lock:
            checkpoint = self.runs.weights(weights)
            key = (str(checkpoint), device)
            if key not in self._ready:
                self._ready[key] = Segmenter(self.folder, checkpoint, device, self.own)
                if len(self._ready) > _BUNDLES_KEPT:
                    self._ready.popitem(last=False)
            self._ready.move_to_end(key)
            return self._ready[key]

    def prepare(self, request: Mapping[str, Any]) -> Prepared:
        """Read the options of a request.

        Raises:
            RequestRefusedError: an option has a value that is not allowed, or there are no weights.
        """
        if not self.has_weights:
            raise RequestRefusedError(
                f"{self.name}: no weights yet. Train the bundle, or name its weights as 'checkpoint' in the file of "
                "--conf settings.",
                409,
            )
        values = read_options(self.options(), {**request, "device": read_device(request.get("device"))})
        bundle = self.bundle(str(values.pop("weights")), str(values.pop("device")))
        domain = values.pop("domain", ANY_DOMAIN)
        return Prepared(bundle, values, None if domain == ANY_DOMAIN else str(domain))

    def nuclei(self, prepared: Prepared, source: ImageSource, region: Region) -> Iterator[Nucleus]:
        """Return the nuclei of a region, in its pixels: of what fits into one window as of an image, else of a slide.

        Raises:
            RequestRefusedError: the region is larger than a window, and the network sees images stretched.
            ConfigurationError: an option that does not work beyond one window.
        """
        bundle, options, domain = prepared
        window_px = self.settings.window_px
        if max(region.width, region.height) <= window_px:
            return nuclei_of_prediction(bundle.segment(source.read(region), domain=domain, **options))
        if "fit" in bundle.config and bundle.value("fit") == "resize":
            raise RequestRefusedError(
                f"{self.name}: found a region of {region.width} x {region.height} px, but these weights see each image "
                f"stretched to one size. Choose a region of at most {window_px} px a side."
            )
        reader, level = reader_of(source)
        if reader.mpp is None and "diameter" in self.config:
            options = {"diameter": bundle.value("diameter"), **options}
        method, largest_px = method_of(bundle, domain, **options), self.settings.overlap_px
        return nuclei_of_region(reader, level, region, method, shard_px=window_px, largest_px=largest_px)

    def clicked_nuclei(self, prepared: Prepared, source: ImageSource, clicks: Clicks) -> list[Nucleus]:
        """Return the nuclei of clicks and boxes, in pixels of the image.

        Raises:
            RequestRefusedError: the bundle takes no clicks.
        """
        with self._lock:
            segmenter = prepared.bundle.click_segmenter
            if segmenter is None:
                raise RequestRefusedError(f"{self.name}: takes no clicks. Ask it for a whole image.")
            return [nucleus for nucleus in segmenter.segment(source, clicks) if nucleus is not None]

    def uncertainty(self, path: Path) -> float:
        """Return how uncertain the nuclei of an image are, judged by its middle."""
        bundle, options, domain = self.prepare({})
        source = self.opener.open(path)
        try:
            found = bundle.segment(source.read(sample_region(source)), domain=domain, **options)
            return uncertainty(found.table["score"].tolist())
        finally:
            source.close()

    def _default(self) -> Segmenter:
        choices = self.runs.choices()
        if choices:
            return self.bundle(choices[0], devices()[0])
        return Segmenter(self.folder, None, "cpu", self.own)

    def _default_weights(self) -> Path | None:
        """Return where ``inference.json`` has its weights by default; None if it names none."""
        checkpoint = Segmenter(self.folder, None, "cpu", self.own).value("checkpoint")
        return None if checkpoint is None else Path(str(checkpoint))


def devices() -> list[str]:
    """Return the devices to choose from, GPUs first; the CPU is always one."""
    return [*(f"cuda:{number}" for number in range(torch.cuda.device_count())), "cpu"]


def read_device(wanted: Any) -> str:
    """Return the device of a request; ``cuda`` without a number is the first GPU, or else the CPU.

    Raises:
        RequestRefusedError: there is no such device.
    """
    wanted = wanted[0] if isinstance(wanted, list) and wanted else wanted
    if wanted in (None, "", "cuda"):
        return devices()[0]
    if wanted not in devices():
        raise RequestRefusedError(f"device {str(wanted)[:60]!r}: expected one of {', '.join(devices())}.")
    return str(wanted)
