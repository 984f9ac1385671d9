"""List the sizes of the SAM models: one table that every builder of this package reads."""

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from nucsam_monai.utils.errors import ConfigurationError

Stem = Literal["patch", "conv", "efficientnet_lite0"]
_STEMS = get_args(Stem)


@dataclass(frozen=True, kw_only=True)
class SAMVariant:
    """Define the sizes of one SAM model.

    The official models are those of "Segment Anything" (Kirillov et al., 2023), appendix A, with the plain
    vision transformer of ViTDet (Li et al., 2022) as image encoder.

    Attributes:
        name: key in :data:`SAM_VARIANTS`.
        depth: transformer blocks in the image encoder, a multiple of four.
        width: channels of an encoder token.
        heads: attention heads of the encoder; divides ``width``.
        global_blocks: 0-based blocks that attend over the whole grid; all others attend inside windows.
        window: side of an attention window in tokens.
        patch: side of the image area behind one token, in pixels.
        stem: ``"patch"`` is one convolution of kernel and stride ``patch``; ``"conv"`` is a chain of 3 x 3
            convolutions with stride 2; ``"efficientnet_lite0"`` is a convolutional trunk that can start from
            ImageNet, see :mod:`~nucsam_monai.networks.sam.trunk`.
        fine_channels: channels of the fine map at half the image's size that a trunk's first stages add to the
            upscaled embedding; 0 for none.
        mlp_ratio: hidden width of a block's MLP divided by ``width``.
        embed_channels: channels of the image embedding, the prompt tokens and the mask decoder.
        pos_grid: side of the learned position table in tokens; other grids interpolate it.
        mask_in_chans: channels inside the encoder of mask prompts.
        decoder_depth: layers of the mask decoder's two-way transformer.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_width: hidden width of the MLPs in the mask decoder.
        iou_head_depth: layers of the head that predicts each mask's IoU.
        iou_head_width: hidden width of that head.
        checkpoint_file: name of the official weights file; None if there is none.
    """

    name: str
    depth: int
    width: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    patch: int = 16
    stem: Stem = "patch"
    fine_channels: int = 0
    mlp_ratio: float = 4.0
    embed_channels: int = 256
    pos_grid: int = 64
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    iou_head_depth: int = 3
    iou_head_width: int = 256
    checkpoint_file: str | None = None

    def __post_init__(self) -> None:
        demands = {
            f"depth {self.depth} must be a multiple of 4": self.depth % 4 == 0 and self.depth > 0,
            f"width {self.width} must be a multiple of heads {self.heads}": self.width % self.heads == 0,
            f"global_blocks {self.global_blocks} must lie in 0..{self.depth - 1}": all(
                0 <= block < self.depth for block in self.global_blocks
            ),
            f"embed_channels {self.embed_channels} must be a multiple of 8 and of 2 * decoder_heads": (
                self.embed_channels % 8 == 0 and self.embed_channels % (2 * self.decoder_heads) == 0
            ),
            f"stem '{self.stem}' must be one of {', '.join(_STEMS)}": self.stem in _STEMS,
            f"patch {self.patch} must be a power of two for stem 'conv'": (
                self.stem != "conv" or (self.patch > 1 and self.patch & (self.patch - 1) == 0)
            ),
            f"patch {self.patch} and fine_channels {self.fine_channels} must be 16 and above 0 with a trunk, and "
            "fine_channels 0 without": (
                (self.patch == 16 and self.fine_channels > 0)
                if self.stem == "efficientnet_lite0"
                else self.fine_channels == 0
            ),
        }
        broken = [demand for demand, met in demands.items() if not met]
        if broken:
            raise ConfigurationError(f"SAM variant '{self.name}': {'; '.join(broken)}.")

    @property
    def head_width(self) -> int:
        """Channels of one attention head in the encoder."""
        return self.width // self.heads

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Channels of the maps at an 8th, a 4th and half of the image that a trunk adds, the last the fine one."""
        fine = self.fine_channels
        return (2 * fine, 3 * fine // 2, fine) if fine else ()

    @property
    def feature_blocks(self) -> tuple[int, int, int, int]:
        """0-based blocks after a quarter, half, three quarters and all of the depth."""
        quarter = self.depth // 4
        return (quarter - 1, 2 * quarter - 1, 3 * quarter - 1, self.depth - 1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the token grid (rows, columns) of an image of ``image_size`` = (height, width) pixels.

        Raises:
            ConfigurationError: a side is not a positive multiple of ``patch``.
        """
        height, width = image_size
        if height < 1 or width < 1 or height % self.patch or width % self.patch:
            raise ConfigurationError(
                f"image of {height} x {width} px: SAM variant '{self.name}' needs sides that are "
                f"multiples of {self.patch} px. Pad or resize the image."
            )
        return height // self.patch, width // self.patch


SAM_VARIANTS: dict[str, SAMVariant] = {
    variant.name: variant
    for variant in (
        SAMVariant(
            name="vit_tiny",
            depth=4,
            width=128,
            heads=4,
            global_blocks=(3,),
            window=8,
            patch=8,
            stem="conv",
            embed_channels=128,
            pos_grid=32,
            decoder_mlp_width=512,
            iou_head_width=128,
        ),
        SAMVariant(
            name="hybrid",
            depth=4,
            width=192,
            heads=6,
            global_blocks=(1, 3),
            window=8,
            stem="efficientnet_lite0",
            fine_channels=32,
            embed_channels=128,
            pos_grid=16,
            decoder_mlp_width=512,
            iou_head_width=128,
        ),
        SAMVariant(
            name="vit_b",
            depth=12,
            width=768,
            heads=12,
            global_blocks=(2, 5, 8, 11),
            checkpoint_file="sam_vit_b_01ec64.pth",
        ),
        SAMVariant(
            name="vit_l",
            depth=24,
            width=1024,
            heads=16,
            global_blocks=(5, 11, 17, 23),
            checkpoint_file="sam_vit_l_0b3195.pth",
        ),
        SAMVariant(
            name="vit_h",
            depth=32,
            width=1280,
            heads=16,
            global_blocks=(7, 15, 23, 31),
            checkpoint_file="sam_vit_h_4b8939.pth",
        ),
    )
}


def sam_variant(name: str) -> SAMVariant:
    """Return the variant called ``name``.

    Raises:
        ConfigurationError: there is no such variant; the message names the permitted ones and the nearest.

    Example:
        >>> sam_variant("vit_b").feature_blocks
        (2, 5, 8, 11)
    """
    if name in SAM_VARIANTS:
        return SAM_VARIANTS[name]
    nearest = difflib.get_close_matches(name, SAM_VARIANTS, n=1, cutoff=0.3)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise ConfigurationError(f"SAM variant '{name}' is unknown. Permitted: {', '.join(SAM_VARIANTS)}.{hint}")
