"""The networks that find nuclei as objects, by their names."""

from collections.abc import Mapping, Sequence

from nucsam_monai.networks.detector import Detector
from nucsam_monai.networks.mask_rcnn import MaskRCNN
from nucsam_monai.networks.pointnu_net import PointNuNet
from nucsam_monai.networks.sparse_inst import SparseInst
from nucsam_monai.utils.errors import ConfigurationError

DETECTORS: Mapping[str, type[Detector]] = {one.method: one for one in (MaskRCNN, PointNuNet, SparseInst)}


def build_detector(
    name: str, class_names: Sequence[str], encoder: str | None = None, rois_per_image: int | None = None
) -> Detector:
    """Build a detector with random weights.

    Args:
        name: a key of :data:`DETECTORS`.
        class_names: names of the classes of nuclei.
        encoder: network that describes the image; None for that of the paper.
        rois_per_image: regions per image of Mask R-CNN; the other detectors ignore it.

    Raises:
        ConfigurationError: an unknown name or encoder.

    Example:
        >>> build_detector("sparse_inst", ["nucleus"], "resnet18").encoder
        'resnet18'
    """
    encoder = encoder or _named(name).paper_encoder
    if name == MaskRCNN.method and rois_per_image is not None:
        return MaskRCNN(class_names, encoder, rois_per_image)
    return DETECTORS[name](class_names, encoder)


def _named(name: str) -> type[Detector]:
    """Return the class of a detector, whose attributes are what it does by default.

    Raises:
        ConfigurationError: the name is unknown.
    """
    if name not in DETECTORS:
        raise ConfigurationError(f"detector '{name}': expected one of {', '.join(DETECTORS)}.")
    return DETECTORS[name]


def paper_encoder(name: str) -> str:
    """Return the encoder that the paper of a detector has."""
    return _named(name).paper_encoder


def default_min_score(name: str) -> float:
    """Return the score below which nuclei of a detector are dropped by default."""
    return _named(name).default_min_score
