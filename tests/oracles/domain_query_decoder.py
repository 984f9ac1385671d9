"""UN-SAM's decoder through SAM's own layers, as the reference of the one that computes cell by cell."""

import torch
from torch import Tensor

from nucsam_monai.networks.unsam import DomainQueryDecoder


def decode_with_official_layers(
    decoder: DomainQueryDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    domain: int,
    prompt_tokens: Tensor | None = None,
) -> Tensor:
    """Run the official transformer and the transposed convolutions; return ``(B, n_q, 4h, 4w)`` logits."""
    batch, channels, height, width = embedding.shape
    queries = torch.cat(list(decoder.queries)) if decoder.joint_queries else decoder.queries[domain]
    first = sum(map(len, decoder.queries[:domain])) if decoder.joint_queries else 0
    tokens = queries.expand(batch, -1, -1)
    if prompt_tokens is not None:
        tokens = torch.cat([tokens, prompt_tokens], dim=1)
    tokens, cells = decoder.transformer(embedding, image_pe.expand_as(embedding), tokens)
    upscaled = decoder.output_upscaling(cells.mT.reshape(batch, channels, height, width))
    kernels = [mlp(tokens[:, first + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps[domain])]
    return torch.einsum("bqc,bchw->bqhw", torch.stack(kernels, dim=1), upscaled)
