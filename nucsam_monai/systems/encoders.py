"""U-Net, U-Net++, FPN, DeepLabV3+ and SegFormer's decoder on an encoder by name: segmentation-models-pytorch (MIT)."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucsam_monai.networks.baselines import Built
from nucsam_monai.networks.sam.trunk import copy_imagenet
from nucsam_monai.networks.sam.weights import read_tensors
from nucsam_monai.systems.system import Order, System
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError, require_package

_SIDE_MULTIPLE = 32  # the encoders halve five times

_NARROW: Mapping[str, Mapping[str, Any]] = {
    "Unet": {"decoder_channels": (64, 48, 32, 24, 16)},
    "UnetPlusPlus": {"decoder_channels": (64, 48, 32, 24, 16)},
    "FPN": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
    "DeepLabV3Plus": {"decoder_channels": 64},
    "Segformer": {"decoder_segmentation_channels": 64},
}
"""Decoders of the size ``small``; those of the size ``standard`` are the library's."""


class EncoderNetwork(nn.Module):
    """A decoder of segmentation-models-pytorch on one of its encoders, from random weights.

    Millions of parameters with ``resnet50``, decoder of ``standard`` size: U-Net 32.5, U-Net++ 49.0, FPN 26.1,
    DeepLabV3+ 26.7, SegFormer 24.8.

    Args:
        architecture: name of the class in the library.
        encoder: a name of the library, for example ``resnet50`` or ``mit_b0``; ``tu-<name>`` for one of timm.
        outputs: logits per pixel.
        small: narrow the decoder.

    Raises:
        ConfigurationError: the library is not installed, or does not have this encoder with this decoder.
    """

    def __init__(self, architecture: str, encoder: str, outputs: int = 1, small: bool = False) -> None:
        super().__init__()
        require_package("segmentation_models_pytorch", f"encoder '{encoder}'")
        library = import_module(
            "segmentation_models_pytorch"
        )  # takes a second, which other networks need not spend
        narrow = _NARROW[architecture] if small else {}
        try:
            self.model = getattr(library, architecture)(
                encoder, encoder_weights=None, in_channels=3, classes=outputs, **narrow
            )
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"{architecture} on encoder '{encoder}': not built ({error}). Name another encoder of "
                "segmentation-models-pytorch, for example resnet50, or tu-<name> for one of timm."
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of 32."""
        return self.model(image)

    @torch.no_grad()
    def load_encoder(self, path: Path | str) -> None:
        """Start the encoder from a file of pretrained weights, or from ``imagenet`` if it is EfficientNet-Lite0.

        Other tensors of the file, such as those of a classifier, are passed over.

        Raises:
            CheckpointError: the file cannot be read, or lacks a tensor of the encoder or has it in another shape.
        """
        if path == "imagenet":
            copy_imagenet(list(self.model.encoder.state_dict().values()))
            return
        found = read_tensors(path)
        for name, tensor in self.model.encoder.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in found or found[name].shape != tensor.shape:
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise CheckpointError(
                    f"{path}: found {shape} for '{name}', expected {tuple(tensor.shape)}. Give weights of this encoder "
                    "as segmentation-models-pytorch, or timm for tu-, names them."
                )
            tensor.copy_(found[name])


def _build(architecture: str, order: Order) -> Built:
    network = EncoderNetwork(architecture, order.variant, order.outputs, order.small)
    return Built(network, _SIDE_MULTIPLE)


ENCODER_SYSTEMS: Mapping[str, System] = {
    f"{key}-*": System(partial(_build, architecture))
    for key, architecture in {
        "unet": "Unet",
        "unetpp": "UnetPlusPlus",
        "fpn": "FPN",
        "deeplabv3plus": "DeepLabV3Plus",
        "segformer": "Segformer",
    }.items()
}
"""By ``<decoder>-<encoder>``."""
