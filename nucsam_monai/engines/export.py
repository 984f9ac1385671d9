"""Export a network, with its weights, to a file that runs without this package."""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from monai.data import save_net_with_metadata
from monai.transforms import Compose, EnsureChannelFirst, ResizeWithPadOrCrop
from monai.utils import optional_import
from torch import Tensor, nn

from nucsam_monai.data.demo import DemoSlot, draw_demo_image
from nucsam_monai.transforms.reader import NormalizeSAMd, PixelStd
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # of the largest logit; ONNX Runtime stays below 1e-5

Program = Callable[[Tensor], Tensor]


def export_network(
    network: nn.Module, path: str | Path, image_size: int, pixel_std: PixelStd = "sam"
) -> None:
    """Export a network whose only input is an image, and compare the file with the network on another image.

    A graph that depends on the content of its example image would give wrong masks for all other images. The file is
    therefore loaded and run on a second image, and kept only if the outputs agree.

    Args:
        network: network on the CPU, with its weights.
        path: ``.pt2`` (``torch.export``), ``.ts`` (TorchScript) or ``.onnx``.
        image_size: side length S of the input ``(1, 3, S, S)``.
        pixel_std: constants with which images are normalised for the network.

    Raises:
        ConfigurationError: the suffix is unknown, the steps of the network depend on the content of the image, or the
            file gives other logits than the network.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ConfigurationError(
            f"export_path {path}: expected the suffix {', '.join(_FORMATS)}, found '{path.suffix}'."
        )
    network = network.cpu().eval()
    example, other = (_image(domain, image_size, pixel_std) for domain in ("demo_he", "demo_fluorescence"))
    with torch.no_grad(), atomic_path(path) as temporary:
        program = _FORMATS[path.suffix](network, example, temporary)
        expected, found = network(other), program(other)
        difference, largest = float((expected - found).abs().max()), float(expected.abs().max())
        if not difference <= _TOLERANCE * largest:
            raise ConfigurationError(
                f"{path}: not written, as its logits differ from the network's by {difference:.3g} on an image that "
                f"it was not exported with, expected at most {_TOLERANCE * largest:.3g}."
            )
    logger.info(
        "%s: on another image its logits differ by %.3g at most; the largest is %.3g.",
        path,
        difference,
        largest,
    )


@lru_cache(maxsize=4)
def _image(domain: str, size_px: int, pixel_std: PixelStd) -> Tensor:
    """Return a drawn image ``(1, 3, S, S)`` as the network takes it."""
    pixels = draw_demo_image(DemoSlot(domain, "training", index=0, slide=0)).image
    square = Compose(
        [EnsureChannelFirst(channel_dim=-1), ResizeWithPadOrCrop([size_px, size_px], mode="symmetric")]
    )
    return NormalizeSAMd("image", pixel_std=pixel_std)({"image": square(pixels)})["image"].as_tensor()[None]


def _to_program(network: nn.Module, image: Tensor, path: Path) -> Program:
    torch.export.save(torch.export.export(network, (image,)), path)
    return torch.export.load(path).module()


def _to_torchscript(network: nn.Module, image: Tensor, path: Path) -> Program:
    save_net_with_metadata(torch.jit.trace(network, image, check_trace=False), str(path))
    return torch.jit.load(path)


def _to_onnx(network: nn.Module, image: Tensor, path: Path) -> Program:
    runtime, is_there = optional_import("onnxruntime")
    if not is_there:
        raise ConfigurationError(
            f"{path.suffix}: onnxruntime is missing. Install onnx, onnxscript and onnxruntime."
        )
    torch.onnx.export(network, (image,), path, dynamo=True, external_data=False, verbose=False)
    session = runtime.InferenceSession(path)
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> Tensor:
        (found,) = session.run(None, {name: image.numpy()})
        return torch.from_numpy(found)

    return run


_FORMATS: dict[str, Callable[[nn.Module, Tensor, Path], Program]] = {
    ".pt2": _to_program,
    ".ts": _to_torchscript,
    ".onnx": _to_onnx,
}
