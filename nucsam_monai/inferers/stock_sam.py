"""This package's SAM inside the class that the tools of the package ``segment_anything`` take."""

from segment_anything.modeling import MaskDecoder
from segment_anything.modeling import Sam as StockSam
from torch import Tensor, nn

from nucsam_monai.networks.sam import SAM, ImageEncoder, decode_prompts
from nucsam_monai.utils.errors import ConfigurationError


class _StockEncoder(nn.Module):
    """The image encoder with the official one's result and its square working size."""

    def __init__(self, encoder: ImageEncoder, img_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = img_size

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image).embedding


class _StockDecoder(nn.Module):
    """The mask decoder behind the official one's arguments, run by :func:`decode_prompts`."""

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

    Preparation of images and masks is the official code's: the longer side is resized to the working size
    and the rest padded.

    Raises:
        ConfigurationError: the network was built for images that are not square, or its variant has a fine map, which
            the official tools do not pass on.
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
