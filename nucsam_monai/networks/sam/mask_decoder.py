"""The official mask decoder in the sizes of a variant."""

from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant


class FineMaskDecoder(MaskDecoder):
    """The mask decoder of variants with a fine map: each mask token has a second kernel, for that map.

    Args:
        fine_channels: channels of the fine map.
        options: of the official decoder.
    """

    def __init__(self, fine_channels: int, **options: object) -> None:
        super().__init__(**options)
        channels = self.transformer_dim
        self.fine_channels = fine_channels
        self.fine_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, fine_channels, 3) for _ in range(self.num_mask_tokens)
        )


def build_mask_decoder(variant: SAMVariant) -> MaskDecoder:
    """Build the mask decoder of a variant, official keys and weights layout.

    Run it through :func:`~nucsam_monai.networks.sam.decoding.decode_prompts`: its own forward pass repeats
    one image embedding for all prompts and is wrong for a batch of several images.
    """
    options = {
        "transformer_dim": variant.embed_channels,
        "transformer": TwoWayTransformer(
            depth=variant.decoder_depth,
            embedding_dim=variant.embed_channels,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_width,
        ),
        "iou_head_depth": variant.iou_head_depth,
        "iou_head_hidden_dim": variant.iou_head_width,
    }
    fine = variant.fine_channels
    decoder = FineMaskDecoder(fine, **options) if fine else MaskDecoder(**options)
    use_float32_norms(decoder)
    return decoder
