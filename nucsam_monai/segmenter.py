"""Load a bundle and segment images with it: arrays, files, Pillow images or whole slides.

Example::

    from nucsam_monai import load

    nuclei = load("unsam").segment("tissue.png")
    nuclei.save("results")

:func:`load` returns a :class:`Segmenter`, and its method :meth:`~Segmenter.segment` returns a
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
from nucsam_monai.engines.configuration import NETWORK_KEYS, literal
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
"""An array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, the path of an image file, or a Pillow image."""

_PIPELINES_KEPT = 4
_CORNER_PX = 32
_NOT_INSTALLED = "{}: not installed. Type: pip install 'nucsam-monai[slides]'."
_REFERENCE = re.compile(r"@(\w+)")
_WIDE_MODES = ("I", "F", "1")


def load(
    bundle: str | Path, weights: str | Path | None = None, device: str | None = None, **options: Setting
) -> "Segmenter":
    """Load a bundle and its weights.

    Args:
        bundle: name of a bundle that comes with the package, such as ``"unsam"`` (``nucsam models`` lists them), or
            the path of a bundle's folder.
        weights: short name of pretrained weights, such as ``"he"`` for ``models/compact_he.safetensors``; or the path
            of a weights file, or of the folder with both files of PromptNucSeg (``prompter.safetensors`` and
            ``segmentor.safetensors``). Default: the weights that the bundle's ``inference.json`` names.
        device: PyTorch device, such as ``"cpu"`` or ``"cuda:0"``. Default: a GPU if PyTorch finds one, else the CPU;
            under torchrun the GPU number ``LOCAL_RANK``.
        options: other keys of ``inference.json`` with their values, such as ``threshold=0.4``.

    Returns:
        A segmenter whose network is built and loaded.

    Raises:
        ConfigurationError: the bundle does not exist or has no ``inference.json``, or an option is not one of its keys.
        CheckpointError: the weights do not exist or belong to another network.

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
    """Segment images with one bundle, one set of weights and one device.

    Usually made by :func:`load`. The network, the transforms and the inferer are those of the bundle's
    ``inference.json``; they are built when they are first needed. One segmenter may be used from several threads.

    Args:
        folder: path of the bundle.
        checkpoint: weights file, or a folder of weights files for bundles that use several. Default: the weights that
            ``inference.json`` names.
        device: PyTorch device, such as ``"cpu"`` or ``"cuda:0"``.
        settings: other keys of ``inference.json`` with their values, as on the command line of ``monai.bundle run``.
        networks: the network with its weights, in evaluation mode, by :attr:`NETWORK_KEYS`. Default: it is built and
            loaded when it is needed.

    Raises:
        ConfigurationError: the bundle has no ``inference.json``, a setting is not one of its keys, or a setting is
            text that MONAI would evaluate.

    Example:
        >>> segmenter = Segmenter("bundles/unsam", "output/mine/model.safetensors")  # doctest: +SKIP
        >>> len(segmenter.segment(image, threshold=0.4))  # doctest: +SKIP
        37
    """

    NETWORK_KEYS = ("network_def", "network")
    """The keys of ``inference.json`` that hold the network: as it was built, and on its device."""

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
        """Names of the domains that the weights were trained on; empty for methods without domains."""
        return tuple(self.value("domains")) if "domains" in self.config else ()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of nuclei. If every domain has its own classes: those of the domain in the settings."""
        if "classes" in self.config:
            return tuple(self.value("classes").get(self.value("domain"), ("nucleus",)))
        return tuple(self.value("class_names")) if "class_names" in self.config else ("nucleus",)

    @property
    def network(self) -> nn.Module:
        """The network with its weights loaded, in evaluation mode."""
        return self.build()["network_def"]

    @property
    def image_size(self) -> int:
        """Side length in pixels of the tiles that the network was trained on."""
        return int(self.value("image_size"))

    @cached_property
    def click_segmenter(self) -> ClickSegmenter | None:
        """Segments nuclei from clicks and boxes and caches encoded tiles; None if the network takes no prompts."""
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
        """Segment all nuclei of an image, or only the nuclei at the given points and boxes.

        Args:
            image: array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, path of an image file, Pillow image, or a list of
                these. The alpha channel is dropped, and pixels that are not uint8 are converted by
                :func:`nucsam_monai.io.images.to_rgb_uint8`.
            points: ``(n, 2)`` array of (x, y) in pixels, one point on each nucleus.
            boxes: ``(n, 4)`` array of (x_min, y_min, x_max, y_max) in pixels, one box around each nucleus.
            domain: domain of the image, one of :attr:`domains`. Default: unknown.
            options: keys of ``inference.json`` with their values for this call, such as ``threshold=0.4``.

        Returns:
            The nuclei of the image; for a list of images, a list. With prompts, the id of a nucleus is the number of
            its prompt, counted from 1 and points before boxes; prompts that found no nucleus have no entry.

        Raises:
            ImageReadError: an image cannot be read.
            ConfigurationError: an option is unknown or changes the network (pass it to :func:`load`), the network
                takes no prompts, or a prompt lies outside the image.

        Example:
            >>> nuclei = segmenter.segment("tissue.png", points=[[128, 120]])  # doctest: +SKIP
            >>> nuclei.table["area_px"]  # doctest: +SKIP
            array([412])
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
        """Segment an image of up to ``whole_px`` pixels in one piece, and a larger one in parts."""
        count = pixels.shape[0] * pixels.shape[1]
        if count > whole_px:
            reason = self._why_not_in_parts(options)
            if reason is None:
                return self._in_parts(pixels, domain, options, whole_px)
            check_memory_for_whole(pixels.shape[1], pixels.shape[0], reason)
        with self._lock, _own_errors():
            return self._pipeline(options).run(pixels, domain)

    def _why_not_in_parts(self, options: Mapping[str, Setting]) -> str | None:
        """Return why this bundle cannot segment an image in parts, and what to do; None if it can."""
        try:
            from nucsam_monai.wsi.bundles import why_not_in_parts
        except ImportError as error:
            return _NOT_INSTALLED.format(error.name)
        return why_not_in_parts(self, **options)

    def _in_parts(
        self, pixels: np.ndarray, domain: str | None, options: Mapping[str, Setting], largest_part_px: int
    ) -> NucleiPrediction:
        """Segment an image in parts, like a slide.

        The lock is not held for the whole call, because a second thread does the post-processing.
        """
        from nucsam_monai.wsi.bundles import method_of
        from nucsam_monai.wsi.regions import nuclei_of_image

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
        """Segment a whole slide and write the nuclei to ``<output_dir>/<name of the slide>``.

        Needs the extra ``slides``. Call it again to resume an interrupted run.

        Args:
            path: slide, or image of any size.
            output_dir: folder for the results; created if missing.
            domain: domain of the slide, one of :attr:`domains`. Default: unknown.
            overwrite: delete the results of an earlier run with other options.
            slide: how to read the slide and which files to write. Default: ``SlideOptions()``.
            options: keys of ``inference.json`` with their values, such as ``threshold=0.4``.

        Returns:
            The number of nuclei and the paths of the written files.

        Raises:
            SlideError: the slide cannot be read, or its pixel size in micrometres is unknown.
            ConfigurationError: an option is unknown, or ``output_dir`` holds results of this slide with other options.
        """
        try:
            from nucsam_monai.wsi import SlideOptions, segment_slide
            from nucsam_monai.wsi.bundles import method_of
        except ImportError as error:
            raise ConfigurationError(_NOT_INSTALLED.format(error.name)) from error

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
        """Run the network on a region of a larger image, without post-processing.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB.
            domain: domain of the image; None if unknown.
            statistics: mean and standard deviation of the whole image, which the region is normalised with; None to
                normalise the region by itself as the bundle's transforms do.
            options: keys of ``inference.json`` with their values.

        Returns:
            The output of the bundle's inferer, to be passed to :meth:`nuclei_of_region`.
        """
        with self._lock, _own_errors():
            return self._pipeline(options).infer(pixels, domain, statistics)

    def nuclei_of_region(self, found: Any, **options: Setting) -> NucleiPrediction:
        """Post-process the output of :meth:`infer_region`; meanwhile another thread may run the network.

        Args:
            found: output of :meth:`infer_region`.
            options: the same options.
        """
        with self._lock:
            pipeline = self._pipeline(options)
        with _own_errors():
            return pipeline.nuclei(found)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Apply the bundle's preprocessing: ``(H, W, 3)`` uint8 RGB to ``(1, 3, H, W)`` on the network's device."""
        with self._lock:
            return self._pipeline({}).batch(image)["image"].to(self.device)

    def value(self, key: str) -> Any:
        """Return the evaluated value of a key of ``inference.json``."""
        with self._lock, _own_errors():
            return self._values.get_parsed_content(key)

    def _parser(self, values: Mapping[str, Any]) -> ConfigParser:
        """Return a parser of the configuration with our settings and ``values``, and an empty list of images."""
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
        """Keys that change the network or its weights; they are set once, by :func:`load`."""
        return keys_behind(self.config, ("network_def", "initialize"))

    def _check_options(self, options: Mapping[str, Setting], domain: str | None) -> None:
        check_settings(options, self.config, str(self.folder))
        if fixed := sorted(set(options) & self.network_keys):
            raise ConfigurationError(
                f"{fixed[0]}: this option changes the network and cannot be set for one image. Pass it to load()."
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
                f"{next(iter(options))}: this option has no effect together with points or boxes. Leave it out."
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
        """Build the network and load its weights on the first call.

        Returns:
            The modules under the keys ``network_def`` and ``network``, as in the configuration.
        """
        with self._lock, _own_errors():
            if self._networks is None:
                parser = self._parser({})
                networks = {key: parser.get_parsed_content(key) for key in self.NETWORK_KEYS}
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
    """Run the evaluator of ``inference.json`` on one image in memory: preprocessing, inferer, post-processing."""

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
        """Return the network's input for an image, and the other arguments of the inferer."""
        item = {} if domain is None else {"domain": domain}
        if statistics is None:
            batch = self.batch(image, **item)
        else:
            mean, std = statistics
            batch = self.batch(image[:_CORNER_PX, :_CORNER_PX], **item)  # for what goes with the image
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
            batch["image"] = pixels.sub_(mean).div_(max(std, FAINTEST_STD))
        inputs, _, *rest = self.prepare_batch(batch, self.device)
        args, kwargs = rest or ((), {})
        return inputs, args, kwargs

    def nuclei(self, found: Any) -> NucleiPrediction:
        """Post-process the output of :meth:`infer`."""
        if self.postprocessing is not None:
            found = self.postprocessing({"pred": found[0]})["pred"]
        nuclei: NucleiPrediction = found
        return nuclei


@dataclass(frozen=True, repr=False)
class SegmentedImage(NucleiPrediction):
    """Hold the nuclei of an image together with the image; in a notebook it shows the overlay.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB, the image that was segmented.

    Example:
        >>> nuclei = segmenter.segment("tissue.png")  # doctest: +SKIP
        >>> nuclei.instances.max(), len(nuclei)  # doctest: +SKIP
        (37, 37)
        >>> nuclei.table["centroid_x_px"][:2]  # doctest: +SKIP
        array([ 12.4, 101.9])
    """

    image: np.ndarray = field(kw_only=True)

    def overlay(self, image: np.ndarray | None = None) -> np.ndarray:
        """Draw the outlines of the nuclei on the image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB of the same size to draw on. Default: the segmented image.

        Returns:
            ``(H, W, 3)`` uint8 RGB.
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
        """Write a label TIFF, GeoJSON, CSV table and overlay with :func:`nucsam_monai.io.write_prediction`.

        Args:
            folder: folder for the files; created if missing.
            stem: start of the file names.
            image: ``(H, W, 3)`` uint8 RGB to draw the overlay on. Default: the segmented image.
            overlay_px: longest side of the overlay in pixels; 0 writes no overlay.

        Returns:
            The paths of the files under ``instances``, ``geojson``, ``table`` and ``overlay``.
        """
        pixels = self.image if image is None else image
        return write_prediction(self, pixels, folder, stem, overlay_px=overlay_px)

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the overlay, at most ``OVERLAY_PX`` pixels wide, and the summary."""
        overlay = draw_prediction(self, self.image, OVERLAY_PX)
        picture = base64.b64encode(encode_png(overlay)).decode("ascii")
        return f'<figure><img src="data:image/png;base64,{picture}"/><figcaption>{self.summary}</figcaption></figure>'


def rgb_of(
    image: ImageLike, max_pixels: int | None = None, intensity_range: IntensityRange | None = None
) -> np.ndarray:
    """Convert an image to a new ``(H, W, 3)`` uint8 RGB array.

    Args:
        image: array, path of an image file, or Pillow image.
        max_pixels: largest number of pixels of a file, see :func:`nucsam_monai.io.read_image_to_segment`.
        intensity_range: pixel values that become 0 and 255, see :func:`nucsam_monai.io.to_rgb_uint8`.

    Raises:
        ImageReadError: the file or the array is not a grey or colour image.
        ConfigurationError: the image is of another type.
    """
    if isinstance(image, (str, Path)):
        return read_image_to_segment(image, max_pixels, intensity_range)
    if isinstance(image, Image.Image):
        keep = image.mode in _WIDE_MODES or image.mode.startswith("I;16")
        return to_rgb_uint8(np.array(image if keep else image.convert("RGB")), "image", intensity_range)
    if not isinstance(image, np.ndarray):
        raise ConfigurationError(
            f"image: expected an array, a path, a Pillow image or a list of these, found {type(image).__name__}."
        )
    has_alpha = image.ndim == 3 and image.shape[2] == 4
    return to_rgb_uint8(np.array(image[..., :3] if has_alpha else image), "image", intensity_range)


def _is_bundle(folder: Path) -> bool:
    return (folder / "configs" / "inference.json").is_file()


def keys_behind(config: Mapping[str, Any], starts: Iterable[str]) -> frozenset[str]:
    """Return the keys ``starts`` that a configuration has, and all keys that they refer to with ``@``."""
    known: set[str] = set()
    left = {key for key in starts if key in config}
    while left:
        known |= left
        texts = json.dumps([config[key] for key in left])
        left = {key for key in _REFERENCE.findall(texts) if key in config} - known
    return frozenset(known)


def takes_prompts(config: Mapping[str, Any]) -> bool:
    """Return whether the network of an ``inference.json`` takes points and boxes, without building it."""
    network = pydoc.locate(str(config.get("network_def", {}).get("_target_", "")))
    if inspect.isfunction(network):  # its annotation says what it builds
        network = get_type_hints(network).get("return")
    return isinstance(network, type) and issubclass(network, PromptableNetwork)


def read_inference_config(folder: Path) -> dict[str, Any]:
    """Read a bundle's ``inference.json``.

    Raises:
        ConfigurationError: the file does not exist or is not JSON.
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
    """Check that settings are keys of a configuration, with values of the right kind.

    Args:
        settings: keys and their new values.
        config: content of the configuration file.
        where: how error messages name the configuration.

    Raises:
        ConfigurationError: a key is unknown, or a value is not a scalar, is text that MONAI would evaluate, or is
            text where the configuration has a number or a switch.
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
    """Raise our own error instead of the RuntimeError that MONAI wraps it in."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, NucSAMError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
