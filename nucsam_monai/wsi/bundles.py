"""Turn a loaded bundle into the method that segments a slide; the only module of this package that knows bundles."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import known_sha256_of_file
from nucsam_monai.utils.prediction import NucleiPrediction
from nucsam_monai.wsi.journal import digest_of
from nucsam_monai.wsi.run import Method

if TYPE_CHECKING:
    from nucsam_monai import Segmenter

_WEIGHTS = ("checkpoint", "prompter_checkpoint", "segmentor_checkpoint")
_SCALE_IS_KNOWN = {"diameter": None, "mpp": None}  # the slide is read at the network's own resolution
_ALWAYS = {
    "points_in_tiles": True
}  # a prompter that sees a whole region finds other points in another region
_LOCAL = {"fit": "tile", "neg_test": 0, "points": None, "whole_image": False}
"""Values of keys with which what is found in a tile depends on the tile alone."""


@dataclass
class BundleRegions:
    """Segment regions of a slide with a bundle, normalised with the mean and standard deviation of the whole slide.

    Attributes:
        segmenter: the bundle with its weights.
        options: values of its configuration.
        domain: domain of the slide.
        statistics: mean and standard deviation that regions are normalised by; None where the method has constants.
    """

    segmenter: "Segmenter"
    options: Mapping[str, Any]
    domain: str | None
    statistics: tuple[float, float] | None

    def infer(self, pixels: np.ndarray) -> Any:
        """Run the network on ``(H, W, 3)`` uint8."""
        return self.segmenter.infer_region(pixels, self.domain, self.statistics, **self.options)

    def nuclei(self, maps: Any) -> NucleiPrediction:
        """Return the nuclei of the network's maps."""
        return self.segmenter.nuclei_of_region(maps, **self.options)


def method_of(segmenter: "Segmenter", domain: str | None = None, **options: Any) -> Method:
    """Return a bundle as a method for slides.

    Args:
        segmenter: the bundle with its weights.
        domain: domain of the slides, for methods with domains.
        options: values of keys of ``inference.json``.

    Raises:
        ConfigurationError: the options make what is found in a tile depend on the image around it.
    """
    config = segmenter.config

    def value(key: str, default: Any = None) -> Any:
        return options.get(key, segmenter.value(key)) if key in config else default

    if not_local := why_not_in_parts(segmenter, **options):
        raise ConfigurationError(not_local)
    tile = segmenter.image_size
    # MONAI's sliding window moves by the integer part of the rest of the tile.
    overlap = (
        value("overlap_px")
        if "overlap_px" in config
        else tile - max(1, int(tile * (1 - value("overlap", 0.25))))
    )
    own = {key: value for key, value in {**_SCALE_IS_KNOWN, **options, **_ALWAYS}.items() if key in config}
    files = {key: _weights_files(segmenter.value(key)) for key in _WEIGHTS if key in config}
    weights = {
        key: digest_of([known_sha256_of_file(file) for file in found]) if found else None
        for key, found in files.items()
    }
    facts = {
        "bundle": segmenter.folder.name,
        "weights": weights,
        "config": digest_of(config),
        "settings": dict(segmenter.settings),
        "options": own,
        "domain": domain,
    }
    return Method(
        facts,
        tile,
        int(overlap),
        value("pixel_std") == "image",
        lambda statistics: BundleRegions(segmenter, own, domain, statistics),
        (segmenter.folder / "configs" / "inference.json", *itertools.chain(*files.values())),
        unwritten=0 if segmenter.device.type == "cpu" else 1,
    )


def why_not_in_parts(segmenter: "Segmenter", **options: Any) -> str | None:
    """Return why an image can only be segmented as a whole, and what to do; None if it can be divided."""
    for key, local in _LOCAL.items():
        found = options.get(key, segmenter.value(key)) if key in segmenter.config else local
        if found != local:
            return (
                f"{key} {found!r}: nuclei of a slide would depend on where it is cut. Pass {key}={local!r}, "
                "if the weights were trained so."
            )
    return None


def _weights_files(path: Any) -> list[Path]:
    if path is None:
        return []
    return [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*.safetensors"))
