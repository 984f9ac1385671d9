"""Segment everything with vanilla SAM, prompted by a grid of points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling import Sam as StockSam
from segment_anything.utils.amg import MaskData, rle_to_mask
from torch import Tensor, nn

from nucsam_monai.inferers.masks import paint_masks
from nucsam_monai.networks.sam import SAM, ImageEncoder, decode_prompts
from nucsam_monai.utils.errors import ConfigurationError

_LEAST = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0, "min_mask_region_area": 0}


class AutomaticMaskInferer(Inferer):
    """Paint the masks of the official ``SamAutomaticMaskGenerator`` into one label map.

    "Segment Anything" (Kirillov et al., 2023), appendix B. Where masks overlap, the one with the highest predicted IoU
    wins. SAM also segments the background between the nuclei, so masks that cover more than ``max_area_share`` of the
    image are dropped.

    The defaults are those of the official package, chosen for ViT-H.

    Args:
        points_per_side: points along a side of the grid.
        points_per_batch: points that are decoded together.
        pred_iou_thresh: masks of a lower predicted IoU are dropped.
        stability_score_thresh: masks with a lower stability score are dropped; the score is the IoU of the pixels
            above logit 1 with the pixels above logit -1.
        box_nms_thresh: IoU of two masks' boxes above which the worse mask is dropped.
        crop_n_layers: layers of crops that are segmented as well; layer i has ``4**i`` of them.
        min_mask_region_area: fill holes and remove islands below this area in square pixels.
        max_area_share: masks above this share of the image's area are dropped.

    Raises:
        ConfigurationError: a value is outside its range.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> inferer = AutomaticMaskInferer(points_per_side=2)
        >>> inferer(torch.zeros(1, 3, 40, 60), build_sam("vit_tiny", 256).eval())["instances"].shape
        torch.Size([1, 1, 40, 60])
    """

    def __init__(
        self,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        min_mask_region_area: int = 0,
        max_area_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.options = {
            "points_per_side": points_per_side,
            "points_per_batch": points_per_batch,
            "pred_iou_thresh": pred_iou_thresh,
            "stability_score_thresh": stability_score_thresh,
            "box_nms_thresh": box_nms_thresh,
            "crop_n_layers": crop_n_layers,
            "min_mask_region_area": min_mask_region_area,
        }
        self.max_area_share = max_area_share
        for name, least in _LEAST.items():
            if self.options[name] < least:
                raise ConfigurationError(f"{name} {self.options[name]}: expected at least {least}.")
        if not 0 < max_area_share <= 1:
            raise ConfigurationError(f"max_area_share {max_area_share}: expected a share in (0, 1].")

    def __call__(self, inputs: Tensor, network: SAM, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Segment images of any size, one after the other.

        Args:
            inputs: ``(B, 3, H, W)``, 8-bit images normalised with SAM's constants.
            network: SAM built for square images; the longer side of ``inputs`` is resized to their side length.
            args: ignored; other inferers take more arguments.
            kwargs: ignored (domain, points).

        Returns:
            ``instances``, the ``(B, 1, H, W)`` int32 label maps, and ``score``, the ``(B, 1, H, W)`` float32
            predicted IoU of each pixel's instance, 0 in the background; on the device of ``inputs``.
            :class:`~nucsam_monai.transforms.LabelMapToPredictiond` turns them into nuclei.

        Raises:
            ConfigurationError: the network is not a :class:`SAM` for square images, or the images are not
                normalised with SAM's constants.
        """
        if not isinstance(network, SAM):
            raise ConfigurationError(
                f"network: found {type(network).__name__}, expected vanilla SAM, for example of "
                "nucsam_monai.networks.sam.build_sam."
            )
        sam = stock_sam(network)
        generator = _MaskGenerator(sam, output_mode="uncompressed_rle", **self.options)
        found = [
            instances_of_records(generator.generate(image), image.shape[:2], self.max_area_share)
            for image in _pixels(inputs, sam)
        ]
        instances, scores = (np.stack(maps)[:, None] for maps in zip(*found, strict=True))
        return {
            "instances": torch.from_numpy(instances).to(inputs.device),
            "score": torch.from_numpy(scores).to(inputs.device),
        }


def instances_of_records(
    records: Sequence[Mapping[str, Any]], shape: tuple[int, int], max_area_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the masks of ``SamAutomaticMaskGenerator``.

    Args:
        records: masks generated with ``output_mode="uncompressed_rle"``. Of masks with the same predicted IoU the
            first one wins.
        shape: height and width of the image.
        max_area_share: masks above this share of the image's area are dropped.

    Returns:
        Label map and scores, see :func:`~nucsam_monai.inferers.masks.paint_masks`.
    """
    largest = max_area_share * shape[0] * shape[1]
    kept = [record for record in records if record["area"] <= largest]
    kept = sorted(kept, key=lambda record: record["predicted_iou"], reverse=True)[::-1]
    masks = (rle_to_mask(record["segmentation"]) for record in kept)
    return paint_masks(masks, [record["predicted_iou"] for record in kept], shape)


class _MaskGenerator(SamAutomaticMaskGenerator):
    """Extend the official generator to images whose crops are all without a mask."""

    def _process_crop(self, *args: Any) -> MaskData:
        data = super()._process_crop(*args)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)  # no mask: a list without a second axis
        return data


def _pixels(images: Tensor, sam: StockSam) -> np.ndarray:
    """Undo SAM's normalisation of ``(B, 3, H, W)`` images: ``(B, H, W, 3)`` uint8."""
    images = convert_to_tensor(images, dtype=torch.float32, device=sam.device, track_meta=False)
    pixels = images * sam.pixel_std + sam.pixel_mean
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest > -0.5 and highest < 255.5):
        raise ConfigurationError(
            f"image: expected one of 0..255, normalised with SAM's constants; undoing that gives "
            f"{lowest:g}..{highest:g}. Use NormalizeSAMd with pixel_std 'sam', once."
        )
    return pixels.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


class _StockEncoder(nn.Module):
    """Give the image encoder the official one's result and square working size."""

    def __init__(self, encoder: ImageEncoder, img_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = img_size

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image).embedding


class _StockDecoder(nn.Module):
    """Run the mask decoder with :func:`decode_prompts` behind the official one's arguments."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        masks = decode_prompts(
            self.decoder,
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            [len(sparse_prompt_embeddings)],
            multimask=multimask_output,
        )
        # NumPy, to which the official tools turn their results, has no bfloat16.
        return masks.logits.float(), masks.iou.float()


def stock_sam(sam: SAM) -> StockSam:
    """Wrap a network for ``SamPredictor`` and ``SamAutomaticMaskGenerator``; the weights are shared.

    The official code resizes the longer side of an image to the working size and pads the rest.

    Raises:
        ConfigurationError: the network was built for images that are not square, or its variant has a fine map, which
            the official tools do not support.
    """
    if sam.variant.fine_channels:
        raise ConfigurationError(
            f"SAM variant '{sam.variant.name}': its decoder needs a fine map, expected a variant without one for the "
            "automatic mode. Take PromptNucSeg, or another variant."
        )
    height, width = sam.prompt_encoder.input_image_size
    if height != width:
        raise ConfigurationError(
            f"SAM was built for images of {height} x {width} px: the automatic mode needs a square working size. "
            "Build it with one number as image_size."
        )
    wrapped = StockSam(
        _StockEncoder(sam.image_encoder, width), sam.prompt_encoder, _StockDecoder(sam.mask_decoder)
    )
    return wrapped.to(sam.image_encoder.pos_embed.device)
