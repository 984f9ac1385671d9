"""Networks to compare the methods with: MONAI's, and U-Net 3+, behind one interface."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, DynUNet, HoVerNet, SwinUNETR, UNet
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS, ConvTrunk, FineFeatures
from nucsam_monai.networks.unet3plus import ORIGINAL_UNET3PLUS, UNet3Plus, UNet3PlusOptions
from nucsam_monai.utils.errors import ConfigurationError, require_package

Size = Literal["small", "standard", "compact"]
"""``small`` for quick trials, ``standard`` for comparisons, ``compact`` on a pretrained EfficientNet-Lite0."""


class Built(NamedTuple):
    """Hold a network and the number that the side lengths of its images must be multiples of."""

    network: nn.Module
    side_multiple: int


class Baseline(nn.Module):
    """Build a network by its name; trained from scratch unless noted.

    | name | network | parameters, ``small`` | ``standard`` |
    |---|---|---|---|
    | ``unet`` | U-Net, residual units (Ronneberger et al., 2015) | 0.4 M | 6.5 M |
    | ``unetpp`` | U-Net++ (Zhou et al., 2018) | 0.6 M | 2.4 M |
    | ``attention_unet`` | Attention U-Net (Oktay et al., 2018) | 0.5 M | 7.9 M |
    | ``unet3p`` | U-Net 3+ (Huang et al., 2020) | 1.7 M | 27.0 M |
    | ``nnunet`` | 2D network of nnU-Net (Isensee et al., 2021) | 0.5 M | 20.6 M |
    | ``swin_unetr`` | Swin UNETR (Hatamizadeh et al., 2022) | 1.6 M | 6.3 M |
    | ``hovernet`` | HoVer-Net (Graham et al., 2019) | | 33.6 M |
    | ``pretrained_unet`` | U-Net on EfficientNet-Lite0 | 3.5 M | 3.5 M |

    All except HoVer-Net return ``outputs`` logits (nucleus and distance map) in training and evaluation, so they work
    with any mask loss and :class:`~nucsam_monai.inferers.SemanticInferer`. None has deep supervision. ``nnunet`` is
    only the network, without nnU-Net's choice of sizes, augmentation and schedule. For ``hovernet``, which has one
    size, see :class:`HoVerNetBranches`.

    Args:
        name: name of the network, see above; any name if ``built`` is given.
        size: size of the network, see :data:`Size`.
        outputs: logits per pixel: 2 for learned instances, see
            :class:`~nucsam_monai.losses.DistanceInstanceLoss`.
        built: the network of a system of :data:`nucsam_monai.systems.SYSTEMS`, which
            :func:`nucsam_monai.systems.build_network` builds; None for those above.
        class_names: names of the classes that the network distinguishes; one name without classes.

    Raises:
        ConfigurationError: the name or size is unknown, or HoVer-Net has more than one output.

    Example:
        >>> Baseline("unet", "small").eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        name: str,
        size: Size = "standard",
        outputs: int = 1,
        built: Built | None = None,
        class_names: Sequence[str] = ("nucleus",),
    ) -> None:
        super().__init__()
        if built is None:
            built = _named(name, size, outputs)
        self.name = name
        self.size = size
        self.outputs = outputs
        self.class_names = tuple(class_names)
        self.network, self.side_multiple = built

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Segment a batch of images.

        Args:
            image: ``(B, 3, H, W)``, normalised.

        Returns:
            Logits ``(B, outputs, H, W)``; of HoVer-Net what :class:`HoVerNetBranches` says.

        Raises:
            ConfigurationError: sides that the network cannot halve often enough.
        """
        height, width = image.shape[-2:]
        if height % self.side_multiple or width % self.side_multiple:
            raise ConfigurationError(
                f"{self.name}: found an image of {height} x {width} px, expected sides that are multiples of "
                f"{self.side_multiple} px. Pad or resize the image."
            )
        return self.network(image)

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        options = {"size": self.size} | ({"outputs": self.outputs} if self.outputs > 1 else {})
        classes = {"class_names": json.dumps(self.class_names)} if len(self.class_names) > 1 else {}
        return {"method": self.name, "sam_variant": "none", "options": json.dumps(options), **classes}


class HoVerNetBranches(nn.Module):
    """Join HoVer-Net's branches: nucleus, horizontal and vertical distances, and types if there are several classes.

    Images have exactly 256 x 256 px, as MONAI's fast mode has it; the decoder pads, so that the output has the
    same size.

    In training the output is MONAI's dictionary, for ``monai.apps.pathology.losses.HoVerNetLoss``. In
    evaluation it is ``(B, 3, 256, 256)``: the logit of nucleus, and the two maps so that a sigmoid turns them
    into 0..1 with 0.5 at a nucleus's centre; then tiles blend like any probability, and
    :class:`~nucsam_monai.transforms.HoVerNetInstancesd` parts touching nuclei. With several classes a logit of each
    follows, whose sigmoid is its probability.

    Args:
        classes: number of classes of nuclei; with 1 there is no branch for types.
    """

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        types = classes + 1 if classes > 1 else 0  # the background is one
        self.network = HoVerNet(mode=HoVerNet.Mode.FAST, decoder_padding=True, out_classes=types)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Segment images ``(B, 3, 256, 256)``; see the class.

        Raises:
            ConfigurationError: images of another size.
        """
        if image.shape[-2:] != (256, 256):
            raise ConfigurationError(
                f"hovernet: found an image of {image.shape[-2]} x {image.shape[-1]} px, expected 256 x 256 px. "
                "Tile the image."
            )
        branches: dict[str, Tensor] = self.network(image)
        return branches if self.training else maps_of_branches(branches)


def maps_of_branches(branches: Mapping[str, Tensor]) -> Tensor:
    """Join the branches of HoVer-Net to ``(B, 3 + classes, H, W)``, see :class:`HoVerNetBranches`."""
    nucleus = branches[HoVerNet.Branch.NP.value].float()
    distances = branches[HoVerNet.Branch.HV.value].float().clamp(-0.999, 0.999)
    maps = [nucleus[:, 1:] - nucleus[:, :1], 2 * torch.atanh(distances)]
    if HoVerNet.Branch.NC.value in branches:
        types = branches[HoVerNet.Branch.NC.value].float().softmax(dim=1)
        maps.append(torch.logit(types[:, 1:], eps=1e-6))
    return torch.cat(maps, dim=1)


class _FinestOutput(nn.Module):
    """The network's own output, of a network that returns a list of outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[-1]


def _unet(small: bool, outputs: int) -> Built:
    channels = (16, 32, 64, 128) if small else (32, 64, 128, 256, 512)
    strides = (2,) * (len(channels) - 1)
    network = UNet(
        2, in_channels=3, out_channels=outputs, channels=channels, strides=strides, num_res_units=2
    )
    return Built(network, 2 ** len(strides))


def _unetpp(small: bool, outputs: int) -> Built:
    features = (16, 16, 32, 64, 128, 16) if small else (32, 32, 64, 128, 256, 32)
    network = BasicUNetPlusPlus(2, in_channels=3, out_channels=outputs, features=features)
    # Heads that only deep supervision needs: weights without a gradient stop distributed training.
    network.final_conv_0_1 = network.final_conv_0_2 = network.final_conv_0_3 = nn.Identity()
    return Built(_FinestOutput(network), 16)


def _attention_unet(small: bool, outputs: int) -> Built:
    channels = (16, 32, 64, 128) if small else (32, 64, 128, 256, 512)
    strides = (2,) * (len(channels) - 1)
    network = AttentionUnet(2, in_channels=3, out_channels=outputs, channels=channels, strides=strides)
    return Built(network, 2 ** len(strides))


def _unet3p(small: bool, outputs: int) -> Built:
    compact = UNet3PlusOptions(filters=(16, 32, 64, 128, 256), activation="relu", pool="max", dropout=0.0)
    network = UNet3Plus(3, outputs, compact if small else ORIGINAL_UNET3PLUS)
    return Built(network, network.stride)


def _nnunet(small: bool, outputs: int) -> Built:
    filters = (16, 32, 64, 128) if small else (32, 64, 128, 256, 512, 512)
    strides = (1, *(2,) * (len(filters) - 1))
    network = DynUNet(
        2,
        in_channels=3,
        out_channels=outputs,
        kernel_size=(3,) * len(filters),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=filters,
    )
    return Built(network, 2 ** (len(filters) - 1))


def _swin_unetr(small: bool, outputs: int) -> Built:
    require_package("einops", "swin_unetr")
    network = SwinUNETR(in_channels=3, out_channels=outputs, feature_size=12 if small else 24, spatial_dims=2)
    return Built(network, 64)  # at 32 px its deepest map is a single cell, which cannot be normalised


def build_hovernet(small: bool, outputs: int = 1, classes: int = 1) -> Built:
    """Build HoVer-Net, with the branch of types for several classes.

    Raises:
        ConfigurationError: another size or number of outputs than its one.
    """
    if small:
        raise ConfigurationError("hovernet: found size 'small', expected 'standard', its only one.")
    if outputs != 1:
        raise ConfigurationError(f"hovernet: found {outputs} outputs, expected 1: its own maps part nuclei.")
    return Built(HoVerNetBranches(classes), 256)


class TrunkFeatures(nn.Module):
    """EfficientNet-Lite0 with a light U-shaped decoder, whose finest map is half the image's size.

    Attributes:
        channels: channels of the map.
    """

    channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ConvTrunk(maps=5)
        self.decoder = FineFeatures(TRUNK_CHANNELS[-1], TRUNK_CHANNELS[-2::-1], (96, 64, 48, self.channels))

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, 32, H / 2, W / 2)`` of ``(B, 3, H, W)``, sides multiples of 32."""
        *fine, coarse = self.trunk(image)
        return self.decoder(coarse, fine[::-1])[-1]


class PretrainedUNet(TrunkFeatures):
    """A U-Net on EfficientNet-Lite0 whose finest map is half the image's size.

    Args:
        outputs: logits per pixel.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(self.channels, outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of 32."""
        logits = self.head(super().forward(image))
        return F.interpolate(logits.float(), scale_factor=2, mode="bilinear", align_corners=False)


def _pretrained_unet(_small: bool, outputs: int) -> Built:
    return Built(PretrainedUNet(outputs), 32)


DENSE_BUILDERS: Mapping[str, Callable[[bool, int], Built]] = {
    "unet": _unet,
    "unetpp": _unetpp,
    "attention_unet": _attention_unet,
    "unet3p": _unet3p,
    "nnunet": _nnunet,
    "swin_unetr": _swin_unetr,
    "pretrained_unet": _pretrained_unet,
}


def _named(name: str, size: str, outputs: int) -> Built:
    """Build a network of the table by its name."""
    builders = {**DENSE_BUILDERS, "hovernet": build_hovernet}
    if name not in builders or size not in get_args(Size):
        raise ConfigurationError(
            f"baseline '{name}' of size '{size}': expected one of {', '.join(builders)} and one of "
            f"{', '.join(get_args(Size))}."
        )
    return builders[name](size == "small", outputs)
