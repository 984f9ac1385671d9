"""Load a bundle, keep it ready, and segment arrays, files and images.

Example::

    from nucsam_monai import load

    nuclei = load("unsam").segment("tissue.png")
    nuclei.save("results")

From top to bottom: :func:`load` makes a :class:`Segmenter`, whose :meth:`~Segmenter.segment` returns a
:class:`SegmentedImage`.
"""

import base64
import inspect
import json
import logging
import os
import pydoc
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints, overload

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.engines import default_prepare_batch
from monai.transforms import Compose, LoadImage, LoadImaged
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from nucsam_monai.engines import default_device
from nucsam_monai.engines.configuration import literal
from nucsam_monai.inferers import ClickSegmenter, SemanticInferer, clicks_in_image, part_to_look_at
from nucsam_monai.io import (
    OVERLAY_PX,
    IntensityRange,
    check_intensity_range,
    check_memory_for_whole,
    draw_prediction,
    encode_png,
    read_image_to_segment,
    to_rgb_uint8,
    whole_image_px,
    write_prediction,
)
from nucsam_monai.networks.nucleus_prompts import PromptableNetwork
from nucsam_monai.transforms.reader import FAINTEST_STD
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError, NucSAMError
from nucsam_monai.utils.image_source import ArrayImage
from nucsam_monai.utils.nucleus import paint_nuclei
from nucsam_monai.utils.paths import bundle_root, find_weights, weights_there
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances
from nucsam_monai.utils.threads import POLICY

if TYPE_CHECKING:
    from nucsam_monai.wsi import SlideOptions, SlideResult

logger = logging.getLogger(__name__)

Scalar = bool | int | float | str | None
Setting = Scalar | Sequence[float]
ImageLike: TypeAlias = np.ndarray | str | Path | Image.Image
"""An array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, a file, or an image of Pillow."""

_PIPELINES_KEPT = 4
NETWORK_KEYS = ("network_def", "network")
"""The keys of ``inference.json`` that hold the network: as it was built, and on its device."""

_REFERENCE = re.compile(r"@(\w+)")
_WIDE_MODES = ("I", "F", "1")


def load(
    bundle: str | Path, weights: str | Path | None = None, device: str | None = None, **options: Setting
) -> "Segmenter":
    """Load a bundle with its weights, ready to segment.

    Args:
        bundle: the name of a bundle in ``bundles/``, or its folder.
        weights: None for those of the bundle's ``inference.json``; the short name of weights that come with the
            bundle, ``"he"`` for ``models/compact_he.safetensors``; or the path of a file, or of the folder of several.
        device: for example ``"cpu"`` or ``"cuda:0"``; None takes a GPU if there is one, and that of its ``LOCAL_RANK``
            among processes that torchrun started.
        options: values of other keys of ``inference.json``, for example ``threshold=0.4``.

    Raises:
        ConfigurationError: there is no such bundle, it cannot infer, or an option is not a key of its configuration.
        CheckpointError: there are no such weights, or they belong to another network.

    Example:
        >>> segmenter = load("unsam", threshold=0.4)  # doctest: +SKIP
        >>> segmenter.segment("tissue.png")  # doctest: +SKIP
        NucleiPrediction(37 nuclei, 256 x 256 px)
    """
    folder = Path(bundle) if _is_bundle(Path(bundle)) else Path(bundle_root(str(bundle)))
    chosen = device or str(default_device())
    checkpoint = None if weights is None else find_weights(folder, weights)
    segmenter = Segmenter(folder, checkpoint, chosen, options)
    named = segmenter.value("checkpoint")
    if named is not None and not Path(named).exists():
        raise CheckpointError(f"{named}: no such weights. {weights_there(folder)}")
    segmenter.build()
    return segmenter


class Segmenter:
    """Segment images with one bundle and one set of weights on one device.

    Nothing is built before it is needed. The objects are those of ``inference.json``.

    Args:
        folder: of the bundle.
        checkpoint: its weights: a file, or the folder of several; None for those that the configuration names.
        device: where the network runs, for example ``"cpu"`` or ``"cuda:0"``.
        settings: other values of the configuration, as after ``monai.bundle run``.
        networks: by :data:`NETWORK_KEYS` the network with its weights, in evaluation mode, if it is there already.

    Raises:
        ConfigurationError: there is no ``inference.json``, or a setting is not one of its keys, or a text that MONAI
            would evaluate.

    Example:
        >>> segmenter = Segmenter("bundles/unsam", "output/mine/model.safetensors")  # doctest: +SKIP
        >>> len(segmenter.segment(image, threshold=0.4))  # doctest: +SKIP
        37
    """

    def __init__(
        self,
        folder: Path | str,
        checkpoint: Path | str | None = None,
        device: str = "cpu",
        settings: Mapping[str, Setting] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = _device(device)
        self.settings = dict(settings or {})
        self.config = read_inference_config(self.folder)
        check_settings(self.settings, self.config, str(self.folder))
        self._networks = None if networks is None else dict(networks)
        self._pipelines: OrderedDict[str, _Pipeline] = OrderedDict()
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"Segmenter('{self.folder.name}', {self.value('checkpoint')}, {self.device})"

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The domains that the weights know; none for methods without domains."""
        return tuple(self.value("domains")) if "domains" in self.config else ()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; where domains have their own, those of the domain in the settings."""
        if "classes" in self.config:
            return tuple(self.value("classes").get(self.value("domain"), ("nucleus",)))
        return tuple(self.value("class_names")) if "class_names" in self.config else ("nucleus",)

    @property
    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        return self.build()["network_def"]

    @property
    def image_size(self) -> int:
        """Side in pixels of the tiles that the network was trained on."""
        return int(self.value("image_size"))

    @cached_property
    def click_segmenter(self) -> ClickSegmenter | None:
        """Nuclei of clicks and boxes, with the tiles encoded so far; None for networks that take no prompts."""
        network = self.network
        if not isinstance(network, PromptableNetwork):
            return None
        enlarge = self.value("enlarge_below_px") if "enlarge_below_px" in self.config else 0.0
        return ClickSegmenter(
            network, self.prepare, self.image_size, str(self.value("precision")), float(enlarge)
        )

    @overload
    def segment(  # type: ignore[overload-overlap]  # mypy does not know the images of Pillow
        self,
        image: ImageLike,
        points: ArrayLike | None = ...,
        boxes: ArrayLike | None = ...,
        *,
        domain: str | None = ...,
        **options: Setting,
    ) -> "SegmentedImage": ...

    @overload
    def segment(
        self, image: list[Any] | tuple[Any, ...], *, domain: str | None = ..., **options: Setting
    ) -> "list[SegmentedImage]": ...

    def segment(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        points: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        *,
        domain: str | None = None,
        **options: Setting,
    ) -> "SegmentedImage | list[SegmentedImage]":
        """Segment the nuclei of an image, or those that are prompted.

        Args:
            image: an array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, a file, an image of Pillow, or a list of these.
                Alpha is dropped; values of other types than uint8 follow
                :func:`nucsam_monai.io.images.to_rgb_uint8`.
            points: ``(n, 2)`` (x, y) in pixels, one on each nucleus.
            boxes: ``(n, 4)`` (x_min, y_min, x_max, y_max) in pixels, one around each nucleus.
            domain: of the image, for methods with domains; None if unknown.
            options: values of keys of ``inference.json`` for this image, for example ``threshold=0.4``.

        Returns:
            The nuclei, or a list of those of each image. With prompts the nucleus of the k-th has the id k, points
            first; ids of prompts that found nothing are left out.

        Raises:
            ImageReadError: an image cannot be read.
            ConfigurationError: an unknown option, or one that the network is built from; a network that takes no
                prompts, or prompts outside the image.
        """
        if isinstance(image, (list, tuple)):
            if points is not None or boxes is not None:
                raise ConfigurationError(
                    "points, boxes: found with a list of images, expected one image. Call segment for each image."
                )
            return [self.segment(one, domain=domain, **options) for one in image]
        self._check_options(options, domain)
        reading: dict[str, Any] = {
            key: options.pop(key, self.value(key) if key in self.config else None)
            for key in ("max_pixels", "intensity_range", "strips_above_mpx")
        }
        pixels = rgb_of(image, reading["max_pixels"], check_intensity_range(reading["intensity_range"]))
        if points is None and boxes is None:
            whole_px = whole_image_px(reading["strips_above_mpx"], reading["max_pixels"])
            found = self._segment(pixels, domain, options, whole_px)
        else:
            with self._lock, _own_errors():
                found = self._prompted(pixels, points, boxes, options)
        return SegmentedImage(found.instances, found.table, found.foreground, found.class_names, image=pixels)

    def _segment(
        self, pixels: np.ndarray, domain: str | None, options: Mapping[str, Setting], whole_px: int
    ) -> NucleiPrediction:
        """Segment an image at once if it has no more pixels than ``whole_px``, else in parts."""
        count = pixels.shape[0] * pixels.shape[1]
        if count > whole_px:
            reason = self._why_not_in_parts(options)
            if reason is None:
                return self._in_parts(pixels, domain, options, whole_px)
            check_memory_for_whole(pixels.shape[1], pixels.shape[0], reason)
        with self._lock, _own_errors():
            return self._pipeline(options).run(pixels, domain)

    def _why_not_in_parts(self, options: Mapping[str, Setting]) -> str | None:
        """Return why images cannot be segmented in parts, and what to do; None if they can."""
        try:
            from nucsam_monai.wsi.bundles import why_not_in_parts
        except ImportError as error:
            return f"{error.name}: not installed. Type: pip install 'nucsam-monai[slides]'."
        return why_not_in_parts(self, **options)

    def _in_parts(
        self, pixels: np.ndarray, domain: str | None, options: Mapping[str, Setting], largest_part_px: int
    ) -> NucleiPrediction:
        """Segment an image as a slide; another thread takes the nuclei out of the maps, so the lock is not held."""
        from nucsam_monai.wsi.bundles import method_of
        from nucsam_monai.wsi.image import nuclei_of_image

        def scale_of(statistics: tuple[float, float] | None) -> float:
            with self._lock, _own_errors():
                part = part_to_look_at(pixels, self.image_size)
                return self._pipeline(options).scale_of(part, domain, statistics)

        of_parts = {key: value for key, value in options.items() if key not in ("diameter", "mpp")}
        return nuclei_of_image(pixels, method_of(self, domain, **of_parts), scale_of, largest_part_px)

    def segment_slide(
        self,
        path: str | Path,
        output_dir: str | Path,
        *,
        domain: str | None = None,
        overwrite: bool = False,
        slide: "SlideOptions | None" = None,
        **options: Setting,
    ) -> "SlideResult":
        """Segment a whole slide into ``<output_dir>/<name of the slide>``; needs the extra ``slides``.

        A run that was stopped is continued by calling this again.

        Args:
            path: a slide, or an image of any size.
            output_dir: made if missing.
            domain: of the slide, for methods with domains.
            overwrite: drop what an earlier run with other options left there.
            slide: how the slide is read and what is written, see :class:`nucsam_monai.wsi.SlideOptions`.
            options: values of keys of ``inference.json``, for example ``threshold=0.4``.

        Raises:
            SlideError: the slide cannot be read, or its micrometres per pixel are unknown.
            ConfigurationError: an unknown option, or ``output_dir`` holds this slide segmented in another way.
        """
        from nucsam_monai.wsi import SlideOptions, segment_slide
        from nucsam_monai.wsi.bundles import method_of

        self._check_options(options, domain)
        method = method_of(self, domain, **options)
        return segment_slide(path, output_dir, method, slide or SlideOptions(), overwrite=overwrite)

    def infer_region(
        self,
        pixels: np.ndarray,
        domain: str | None,
        statistics: tuple[float, float] | None,
        **options: Setting,
    ) -> Any:
        """Run the network on a region of a larger image.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB.
            domain: of the image; None where it is unknown.
            statistics: mean and standard deviation of the larger image to normalise by; None for the method's own
                normalisation.
            options: values of keys of ``inference.json``.

        Returns:
            What :meth:`nuclei_of_region` takes.
        """
        with self._lock, _own_errors():
            return self._pipeline(options).infer(pixels, domain, statistics)

    def nuclei_of_region(self, found: Any, **options: Setting) -> NucleiPrediction:
        """Return the nuclei of what :meth:`infer_region` returned; another thread may run the network meanwhile."""
        with self._lock:
            pipeline = self._pipeline(options)
        with _own_errors():
            return pipeline.nuclei(found)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Return ``(H, W, 3)`` uint8 RGB as the network takes it, ``(1, 3, H, W)`` on its device."""
        with self._lock:
            return self._pipeline({}).batch(image)["image"].to(self.device)

    def value(self, key: str) -> Any:
        """Return the value of a key of the configuration."""
        with self._lock, _own_errors():
            return self._values.get_parsed_content(key)

    def _parser(self, values: Mapping[str, Any]) -> ConfigParser:
        """Return the configuration with this bundle's and further values, without files to read."""
        parser = ConfigParser(json.loads(json.dumps(self.config)))
        own = {"bundle_root": str(self.folder.resolve()), "device": self.device, **self.settings}
        if self.checkpoint is not None:
            own["checkpoint"] = str(self.checkpoint)
        for key, value in {**own, "dataset::data": [], **values}.items():
            parser[key] = literal(value) if isinstance(value, str) else value
        return parser

    @cached_property
    def _values(self) -> ConfigParser:
        return self._parser({})

    @cached_property
    def network_keys(self) -> frozenset[str]:
        """The keys that the network is built and loaded from: they are chosen once, by :func:`load`."""
        return keys_behind(self.config, ("network_def", "initialize"))

    def _check_options(self, options: Mapping[str, Setting], domain: str | None) -> None:
        check_settings(options, self.config, str(self.folder))
        if fixed := sorted(set(options) & self.network_keys):
            raise ConfigurationError(
                f"{fixed[0]}: the network is built from it, expected an option of single images. Pass it to load()."
            )
        if domain is not None and "domains" not in self.config:
            raise ConfigurationError(f"domain '{domain}': {self.folder.name} has no domains. Leave it out.")

    def _prompted(
        self,
        pixels: np.ndarray,
        points: ArrayLike | None,
        boxes: ArrayLike | None,
        options: Mapping[str, Setting],
    ) -> NucleiPrediction:
        if options:
            raise ConfigurationError(
                f"{next(iter(options))}: found together with points or boxes, which have no such option. Leave it out."
            )
        if not takes_prompts(self.config) or self.click_segmenter is None:
            raise ConfigurationError(
                f"points, boxes: the network of {self.folder.name} takes no prompts. Segment the whole image, or load "
                "a bundle such as promptnucseg."
            )
        size = (pixels.shape[0], pixels.shape[1])
        clicks = clicks_in_image(size, points, boxes=boxes)
        nuclei = self.click_segmenter.segment(ArrayImage(pixels), clicks)
        scores = np.array([nucleus.score for nucleus in nuclei if nucleus is not None], dtype=np.float32)
        return prediction_from_instances(paint_nuclei(nuclei, size), scores=scores)

    def _pipeline(self, options: Mapping[str, Setting]) -> "_Pipeline":
        key = json.dumps(options, sort_keys=True)
        if key not in self._pipelines:
            self._pipelines[key] = _Pipeline(self._parser({**options, **self.build()}))
            if len(self._pipelines) > _PIPELINES_KEPT:
                self._pipelines.popitem(last=False)
        self._pipelines.move_to_end(key)
        return self._pipelines[key]

    def build(self) -> dict[str, nn.Module]:
        """Build the network and load its weights, unless that is done; return it by its keys of the configuration."""
        with self._lock, _own_errors():
            if self._networks is None:
                parser = self._parser({})
                networks = {key: parser.get_parsed_content(key) for key in NETWORK_KEYS}
                parser.get_parsed_content("initialize")
                for network in networks.values():
                    network.eval()
                self._networks = networks
                where = str(self.device)
                if self.device.type == "cpu":
                    where += f", {torch.get_num_threads()} threads (OMP_WAIT_POLICY {os.environ.get(POLICY)})"
                logger.info("%s: weights of %s on %s", self.folder.name, self.value("checkpoint"), where)
            return self._networks


class _Pipeline:
    """Run the steps of ``inference.json``'s evaluator on an image, without reading or writing files."""

    def __init__(self, parser: ConfigParser) -> None:
        preprocessing = parser.get_parsed_content("preprocessing")
        self.preprocessing = Compose(
            [step for step in preprocessing.transforms if not isinstance(step, (LoadImage, LoadImaged))]
        )
        self.prepare_batch = default_prepare_batch
        if "prepare_batch" in parser["evaluator"]:
            self.prepare_batch = parser.get_parsed_content("evaluator#prepare_batch")
        self.device, self.network, self.inferer = map(
            parser.get_parsed_content, ("device", "network", "inferer")
        )
        self.postprocessing = (
            parser.get_parsed_content("postprocessing") if "postprocessing" in parser else None
        )

    def batch(self, image: np.ndarray, **item: str) -> dict[str, Any]:
        """Return the batch of one image."""
        pixels = MetaTensor(torch.from_numpy(np.ascontiguousarray(image)), meta={"original_channel_dim": -1})
        return dict(list_data_collate([self.preprocessing({"image": pixels, "id": "image", **item})]))

    def run(self, image: np.ndarray, domain: str | None) -> NucleiPrediction:
        """Return the nuclei of one image."""
        return self.nuclei(self.infer(image, domain))

    @torch.no_grad()
    def infer(
        self, image: np.ndarray, domain: str | None, statistics: tuple[float, float] | None = None
    ) -> Any:
        """Return the inferer's output for one image, before post-processing."""
        inputs, args, kwargs = self._prepared(image, domain, statistics)
        return self.inferer(inputs, self.network, *args, **kwargs)

    @torch.no_grad()
    def scale_of(
        self, image: np.ndarray, domain: str | None, statistics: tuple[float, float] | None
    ) -> float:
        """Return the factor by which the inferer resizes an image."""
        if not isinstance(self.inferer, SemanticInferer):
            return 1.0
        inputs, args, kwargs = self._prepared(image, domain, statistics)
        return self.inferer.scale_of(inputs, self.network, *args, **kwargs)

    def _prepared(
        self, image: np.ndarray, domain: str | None, statistics: tuple[float, float] | None
    ) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """Return the network's input for an image, and the further arguments of the inferer."""
        batch = self.batch(image, **({} if domain is None else {"domain": domain}))
        if statistics is not None:
            mean, std = statistics
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            batch["image"] = (pixels.float() - mean) / max(std, FAINTEST_STD)
        inputs, _, *rest = self.prepare_batch(batch, self.device)
        args, kwargs = rest or ((), {})
        return inputs, args, kwargs

    def nuclei(self, found: Any) -> NucleiPrediction:
        """Return the nuclei of what :meth:`infer` returned."""
        if self.postprocessing is not None:
            found = self.postprocessing({"pred": found[0]})["pred"]
        nuclei: NucleiPrediction = found
        return nuclei


@dataclass(frozen=True, repr=False)
class SegmentedImage(NucleiPrediction):
    """Hold the nuclei of an image, together with the image.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB, as it was segmented.
    """

    image: np.ndarray = field(kw_only=True)

    def overlay(self, image: np.ndarray | None = None) -> np.ndarray:
        """Draw the outlines of the nuclei; return ``(H, W, 3)`` uint8.

        Args:
            image: to draw on in place of the segmented one, ``(H, W, 3)`` uint8 RGB of the same size.
        """
        return draw_prediction(self, self.image if image is None else image)

    def save(
        self,
        folder: Path | str,
        stem: str = "image",
        image: np.ndarray | None = None,
        *,
        overlay_px: int = OVERLAY_PX,
    ) -> dict[str, Path]:
        """Write label image, GeoJSON, table and overlay, see :func:`nucsam_monai.io.write_prediction`.

        Args:
            folder: made if missing.
            stem: start of the files' names.
            image: to draw the overlay on in place of the segmented one.
            overlay_px: longest side of the overlay; 0 writes none.

        Returns:
            The written paths by kind.
        """
        pixels = self.image if image is None else image
        return write_prediction(self, pixels, folder, stem, overlay_px=overlay_px)

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the overlay, reduced if it is large, and the summary."""
        overlay = draw_prediction(self, self.image, OVERLAY_PX)
        picture = base64.b64encode(encode_png(overlay)).decode("ascii")
        return f'<figure><img src="data:image/png;base64,{picture}"/><figcaption>{self.summary}</figcaption></figure>'


def rgb_of(
    image: ImageLike, max_pixels: int | None = None, intensity_range: IntensityRange | None = None
) -> np.ndarray:
    """Return an image as ``(H, W, 3)`` uint8 RGB, which shares no memory with it.

    Args:
        image: an array, a file or an image of Pillow.
        max_pixels: of a file, see :func:`nucsam_monai.io.read_image_to_segment`.
        intensity_range: the values that become 0 and 255, see :func:`nucsam_monai.io.to_rgb_uint8`.

    Raises:
        ImageReadError: the file or the array is not a grey or colour image.
        ConfigurationError: neither an array, a file nor an image of Pillow.
    """
    if isinstance(image, (str, Path)):
        return read_image_to_segment(image, max_pixels, intensity_range)
    if isinstance(image, Image.Image):
        keep = image.mode in _WIDE_MODES or image.mode.startswith("I;16")
        return to_rgb_uint8(np.array(image if keep else image.convert("RGB")), "image", intensity_range)
    if not isinstance(image, np.ndarray):
        raise ConfigurationError(
            f"image: expected an array, a path, an image of Pillow or a list of these, found {type(image).__name__}."
        )
    has_alpha = image.ndim == 3 and image.shape[2] == 4
    return to_rgb_uint8(np.array(image[..., :3] if has_alpha else image), "image", intensity_range)


def _is_bundle(folder: Path) -> bool:
    return (folder / "configs" / "inference.json").is_file()


def keys_behind(config: Mapping[str, Any], starts: Iterable[str]) -> frozenset[str]:
    """Return the keys ``starts`` that exist in a configuration, and all keys that they refer to."""
    known: set[str] = set()
    left = {key for key in starts if key in config}
    while left:
        known |= left
        texts = json.dumps([config[key] for key in left])
        left = {key for key in _REFERENCE.findall(texts) if key in config} - known
    return frozenset(known)


def takes_prompts(config: Mapping[str, Any]) -> bool:
    """Return whether the network of an ``inference.json`` can be prompted, without building it."""
    network = pydoc.locate(str(config.get("network_def", {}).get("_target_", "")))
    if inspect.isfunction(network):  # its annotation says what it builds
        network = get_type_hints(network).get("return")
    return isinstance(network, type) and issubclass(network, PromptableNetwork)


def read_inference_config(folder: Path) -> dict[str, Any]:
    """Return the content of a bundle's ``inference.json``.

    Raises:
        ConfigurationError: there is none.
    """
    file = folder / "configs" / "inference.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error}). Name a bundle that can infer."
        ) from error
    return dict(config)


def check_settings(settings: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Check values for a configuration.

    Args:
        settings: values of its keys.
        config: the configuration.
        where: what messages call it.

    Raises:
        ConfigurationError: there is no such key, or a value is not a scalar, a text that MONAI evaluates, or a text in
            place of a number or a switch.
    """
    for key, value in settings.items():
        if key not in config:
            raise ConfigurationError(
                f"{where}: its configuration has no key '{key}'; its keys are {', '.join(config)}."
            )
        values = value if isinstance(value, (list, tuple)) and config[key] is None else [value]
        if not all(isinstance(one, (bool, int, float, str, type(None))) for one in values) or any(
            str(one)[:1] in ("$", "@", "%") for one in values
        ):
            raise ConfigurationError(
                f"{where}: {key} {value!r}: expected a number, a switch, null or a text without a leading $, @ or %."
            )
        if isinstance(value, str) and isinstance(config[key], (bool, int, float)):
            kind = "a switch" if isinstance(config[key], bool) else "a number"
            raise ConfigurationError(f"{where}: {key} {value!r}: expected {kind} as {config[key]}.")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device '{name}': expected a device of PyTorch, for example 'cpu' or 'cuda:0'."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device '{name}': PyTorch finds no GPU. Pass device 'cpu', or None.")
    return device


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise our own error instead of the one that MONAI wraps it in."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, NucSAMError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
