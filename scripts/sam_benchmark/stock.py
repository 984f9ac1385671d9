"""The stock ``segment_anything`` and timm's copy of its encoder, rebuilt at the working size around our weights."""

import copy
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.sam import SAM, ImageEncoder, SAMVariant


def draw_sam_weights(sam: SAM, seed: int) -> None:
    """Redraw what SAM's initialisation leaves at or near zero, so that every term counts in a comparison."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1, generator=generator)
            elif "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3, generator=generator)


def stock_encoder(encoder: ImageEncoder, size: int) -> ImageEncoderViT:
    """Return the stock encoder for images of ``size`` pixels around the tensors of ours.

    The weights are shared, not copied, but for the position tables, which are resized to the token grid: the
    absolute one bicubically, the relative ones of the global blocks linearly. The stock code has no
    convolutional stem; the compact variant keeps ours.
    """
    variant = encoder.variant
    with torch.device("meta"):
        stock = ImageEncoderViT(
            img_size=size,
            patch_size=variant.patch,
            depth=variant.depth,
            embed_dim=variant.width,
            num_heads=variant.heads,
            mlp_ratio=variant.mlp_ratio,
            out_chans=variant.embed_channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=variant.window,
            global_attn_indexes=variant.global_blocks,
        )
        if variant.stem != "patch":
            stock.patch_embed = copy.deepcopy(encoder.patch_embed).to("meta")
    stock.load_state_dict(tables_at_size(encoder, size), strict=True, assign=True)
    return stock


def timm_encoder(encoder: ImageEncoder, size: int) -> nn.Module:
    """Return timm's ``samvit_base_patch16`` around the same tensors.

    Raises:
        ModuleNotFoundError: timm is not installed.
        RuntimeError: this version of timm names its tensors otherwise.
    """
    import timm

    model = timm.create_model(
        "samvit_base_patch16",
        pretrained=False,
        num_classes=0,
        img_size=size,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    state = {name.replace("mlp.lin", "mlp.fc"): t for name, t in tables_at_size(encoder, size).items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model


def tables_at_size(encoder: ImageEncoder, size: int) -> dict[str, Tensor]:
    """Return the state dict of ``encoder`` with its position tables resized for images of ``size`` pixels."""
    state = dict(encoder.state_dict())
    side, _ = encoder.variant.grid((size, size))
    state["pos_embed"] = F.interpolate(
        state["pos_embed"].permute(0, 3, 1, 2), size=(side, side), mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)
    for block in encoder.variant.global_blocks:
        for axis in "hw":
            name = f"blocks.{block}.attn.rel_pos_{axis}"
            table = state[name].T.unsqueeze(0)
            state[name] = F.interpolate(table, size=2 * side - 1, mode="linear", align_corners=False)[0].T
    return state


def stock_decoder(decoder: MaskDecoder, variant: SAMVariant) -> MaskDecoder:
    """Return the stock decoder with a copy of the weights."""
    stock = MaskDecoder(
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
    stock.load_state_dict(decoder.state_dict())
    return stock


def run_stock_decoder(
    decoder: MaskDecoder,
    embedding: Tensor,
    code: Tensor,
    sparse: Tensor,
    dense: Tensor,
    counts: list[int],
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Decode image by image, at most ``chunk`` prompts at a time, as the stock mask generator does."""
    masks, ious = [], []
    for image, tokens in enumerate(sparse.split(counts)):
        for part in tokens.split(chunk or max(1, len(tokens))):
            if len(part):
                logits, iou = decoder(
                    image_embeddings=embedding[image : image + 1],
                    image_pe=code,
                    sparse_prompt_embeddings=part,
                    dense_prompt_embeddings=dense.expand(len(part), -1, -1, -1),
                    multimask_output=False,
                )
                masks.append(logits)
                ious.append(iou)
    return torch.cat(masks), torch.cat(ious)
