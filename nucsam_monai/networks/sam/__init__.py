"""The Segment Anything Model in parts: variants, image encoder, prompted decoding, weights files."""

from nucsam_monai.networks.sam.adapter import BlockAdapter
from nucsam_monai.networks.sam.cached_encoding import encode_cached
from nucsam_monai.networks.sam.checkpoint import (
    SAMWeights,
    load_official_checkpoint,
    load_strictly,
    save_sam,
)
from nucsam_monai.networks.sam.cropped_masks import CroppedMasks, crop_masks, decode_cropped
from nucsam_monai.networks.sam.decoding import DecodedMasks, decode_in_chunks, decode_prompts
from nucsam_monai.networks.sam.embedding_cache import EmbeddingCache, build_embedding_cache
from nucsam_monai.networks.sam.features import EncoderFeatures
from nucsam_monai.networks.sam.frozen_prefix import first_trained_block
from nucsam_monai.networks.sam.image_encoder import ImageEncoder
from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.networks.sam.mask_decoder import build_mask_decoder
from nucsam_monai.networks.sam.prompt_encoder import PromptEncoder, build_prompt_encoder
from nucsam_monai.networks.sam.sam import SAM, build_sam
from nucsam_monai.networks.sam.trained_weights import (
    frozen_digest,
    load_trained,
    read_header,
    save_trained,
    trained_setting,
    with_settings,
    write_half,
)
from nucsam_monai.networks.sam.trunk import start_trunk
from nucsam_monai.networks.sam.variants import SAM_VARIANTS, SAMVariant, sam_variant

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
    "decode_cropped",
    "decode_in_chunks",
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
