"""One bundle as the server offers it: its weights, its options, whole images, regions and clicks."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import torch

from nucsam_monai.apps.monailabel.certainty import sample_region, uncertainty_of
from nucsam_monai.apps.monailabel.image_source import ImageOpener
from nucsam_monai.apps.monailabel.options import Choice, Option, OptionValue, options_of, read_options
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.apps.monailabel.runs import BundleRuns
from nucsam_monai.apps.monailabel.settings import AppSettings
from nucsam_monai.apps.monailabel.streaming import nuclei_of_region
from nucsam_monai.inferers import Clicks
from nucsam_monai.segmenter import Segmenter, read_inference_config, takes_prompts
from nucsam_monai.utils.image_source import ImageSource, Region
from nucsam_monai.utils.nucleus import Nucleus

logger = logging.getLogger(__name__)

ANY_DOMAIN = "automatic"
_BUNDLES_KEPT = 2
_OF_SERVER = ("device", "weights", "domain")


class Prepared(NamedTuple):
    """What a request asks for: weights on a device, options of the bundle, and the domain where it is known."""

    bundle: Segmenter
    options: dict[str, OptionValue]
    domain: str | None


class ServedModel:
    """A bundle on the server.

    Args:
        name: of the bundle.
        settings: of the application.
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
        """Whether there is anything to answer with."""
        return bool(self.runs.choices())

    @property
    def takes_clicks(self) -> bool:
        """Whether the network can be asked for single nuclei; known without building it."""
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
        """The names of the classes of the weights that are served."""
        return self._default().class_names

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the weights that are served; none for methods without domains."""
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
            RequestRefusedError: an option has no permitted value, or there are no weights.
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
        """Yield the nuclei of a region, in pixels of it."""
        predict = partial(prepared.bundle.segment, domain=prepared.domain, **prepared.options)
        return nuclei_of_region(source, region, predict, self.settings.window_px, self.settings.overlap_px)

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
            return uncertainty_of(
                bundle.segment(source.read(sample_region(source)), domain=domain, **options)
            )
        finally:
            source.close()

    def _default(self) -> Segmenter:
        choices = self.runs.choices()
        if choices:
            return self.bundle(choices[0], devices()[0])
        return Segmenter(self.folder, None, "cpu", self.own)

    def _default_weights(self) -> Path | None:
        """Return where ``inference.json`` has its weights by default; None where that cannot be told."""
        bundle = Segmenter(self.folder, None, "cpu", self.own)
        checkpoint = bundle.value("checkpoint")
        return None if checkpoint is None else Path(str(checkpoint))


def devices() -> list[str]:
    """Return the devices to choose from, GPUs first; the CPU is always one."""
    return [*(f"cuda:{number}" for number in range(torch.cuda.device_count())), "cpu"]


def read_device(wanted: Any) -> str:
    """Return the device of a request; ``cuda`` without a number is the first GPU, or the CPU where there is none.

    Raises:
        RequestRefusedError: there is no such device.
    """
    wanted = wanted[0] if isinstance(wanted, list) and wanted else wanted
    if wanted in (None, "", "cuda"):
        return devices()[0]
    if wanted not in devices():
        raise RequestRefusedError(f"device {str(wanted)[:60]!r}: expected one of {', '.join(devices())}.")
    return str(wanted)
