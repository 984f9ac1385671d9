"""DQ-Decoder of UN-SAM: one set of learned queries per domain (UN-SAM, section III-C)."""

from collections.abc import Sequence

import torch
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn

from nucsam_monai.networks.sam import SAMVariant, build_mask_decoder


class DomainQueryDecoder(nn.Module):
    """SAM's two-way transformer and up-scaling, asked by the queries of one domain.

    SAM's IoU token, IoU head and mask tokens are gone; every query has a hyper-network of its own.

    Args:
        variant: the sizes of SAM's decoder.
        queries_per_domain: number of queries (masks) of each domain.
        joint_queries: let the queries of all domains attend to each other and pick the domain's masks at
            the end, as the authors' code does; otherwise the domain's queries are picked first, so that
            domains cannot interfere.
    """

    def __init__(
        self, variant: SAMVariant, queries_per_domain: Sequence[int], *, joint_queries: bool = False
    ) -> None:
        super().__init__()
        self.joint_queries = joint_queries
        channels = variant.embed_channels
        self.domain_starts = [sum(queries_per_domain[:k]) for k in range(len(queries_per_domain) + 1)]
        self.queries = nn.Embedding(self.domain_starts[-1], channels)
        sam_decoder = build_mask_decoder(variant)
        self.transformer = sam_decoder.transformer
        self.output_upscaling = sam_decoder.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8, 3) for _ in range(self.domain_starts[-1])
        )

    def forward(
        self, embedding: Tensor, image_pe: Tensor, domain: int, prompt_tokens: Tensor | None = None
    ) -> Tensor:
        """Decode the masks of one domain.

        Args:
            embedding: ``(B, C, h, w)``, the image embedding with the hint added.
            image_pe: ``(1, C, h, w)``, SAM's dense positional code.
            domain: index of the domain.
            prompt_tokens: ``(B, K, C)`` point tokens, where points prompt the decoder.

        Returns:
            Mask logits ``(B, n_q, 4h, 4w)`` with one channel per query of the domain.
        """
        batch, _, height, width = embedding.shape
        own = slice(self.domain_starts[domain], self.domain_starts[domain + 1])
        asked = slice(None) if self.joint_queries else own
        count = len(self.queries.weight[asked])
        tokens = self.queries.weight[asked].expand(batch, -1, -1)
        if prompt_tokens is not None:
            tokens = torch.cat([tokens, prompt_tokens.to(tokens.dtype)], dim=1)
        tokens, source = self.transformer(embedding, image_pe.expand(batch, -1, -1, -1), tokens)
        upscaled = self.output_upscaling(source.transpose(1, 2).reshape(batch, -1, height, width))
        answers = tokens[:, :count][:, own] if self.joint_queries else tokens[:, :count]
        mlps = self.output_hypernetworks_mlps[own]
        kernels = torch.stack([mlp(answers[:, i]) for i, mlp in enumerate(mlps)], dim=1)
        return torch.einsum("bqc,bchw->bqhw", kernels, upscaled)

    @torch.no_grad()
    def start_from(self, sam_decoder: MaskDecoder, *, copy_token: bool) -> None:
        """Take over SAM's transformer, up-scaling and the hyper-network of its single-mask token.

        Args:
            sam_decoder: SAM's mask decoder with its official weights.
            copy_token: start every query from SAM's single-mask token instead of a normal draw.
        """
        self.transformer.load_state_dict(sam_decoder.transformer.state_dict())
        self.output_upscaling.load_state_dict(sam_decoder.output_upscaling.state_dict())
        for mlp in self.output_hypernetworks_mlps:
            mlp.load_state_dict(sam_decoder.output_hypernetworks_mlps[0].state_dict())
        if copy_token:
            self.queries.weight.copy_(sam_decoder.mask_tokens.weight[:1].expand_as(self.queries.weight))
