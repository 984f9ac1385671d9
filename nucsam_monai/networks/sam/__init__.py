"""Provide the Segment Anything Model in parts: variants, image encoder, prompted decoding, weights files."""

from nucsam_monai.networks.sam.cache import (
    EmbeddingCache,
    build_embedding_cache,
    encode_cached,
    first_trained_block,
)
from nucsam_monai.networks.sam.cropped_masks import CroppedMasks, crop_masks
from nucsam_monai.networks.sam.decoder import (
    DecodedMasks,
    build_mask_decoder,
    decode_prompts,
)
from nucsam_monai.networks.sam.encoder import BlockAdapter, EncoderFeatures, ImageEncoder
from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.networks.sam.prompt_encoder import PromptEncoder, build_prompt_encoder
from nucsam_monai.networks.sam.sam import SAM, build_sam
from nucsam_monai.networks.sam.trunk import start_trunk
from nucsam_monai.networks.sam.variants import SAM_VARIANTS, SAMVariant, sam_variant
from nucsam_monai.networks.sam.weights import (
    SAMWeights,
    frozen_digest,
    load_official_checkpoint,
    load_strictly,
    load_trained,
    read_header,
    save_sam,
    save_trained,
    trained_setting,
    with_settings,
    write_half,
)

__all__ = [
    "SAM",
    "SAM_VARIANTS",
    "BlockAdapter",
    "CroppedMasks",
    "DecodedMasks",
    "EmbeddingCache",
    "EncoderFeatures",
    "ImageEncoder",
    "LayerNorm2d",
    "PromptEncoder",
    "SAMVariant",
    "SAMWeights",
    "build_embedding_cache",
    "build_mask_decoder",
    "build_prompt_encoder",
    "build_sam",
    "crop_masks",
    "decode_prompts",
    "encode_cached",
    "first_trained_block",
    "frozen_digest",
    "load_official_checkpoint",
    "load_strictly",
    "load_trained",
    "read_header",
    "sam_variant",
    "save_sam",
    "save_trained",
    "start_trunk",
    "trained_setting",
    "with_settings",
    "write_half",
]
