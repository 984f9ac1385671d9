"""The official mask decoder in the sizes of a variant."""

from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant


def build_mask_decoder(variant: SAMVariant) -> MaskDecoder:
    """Build the mask decoder of a variant, official keys and weights layout.

    Run it through :func:`~nucsam_monai.networks.sam.decoding.decode_prompts`: its own forward pass repeats
    one image embedding for all prompts and is wrong for a batch of several images.
    """
    decoder = MaskDecoder(
        transformer_dim=variant.embed_channels,
        transformer=TwoWayTransformer(
            depth=variant.decoder_depth,
            embedding_dim=variant.embed_channels,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_width,
        ),
        iou_head_depth=variant.iou_head_depth,
        iou_head_hidden_dim=variant.iou_head_width,
    )
    use_float32_norms(decoder)
    return decoder
