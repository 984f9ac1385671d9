"""DQ-Decoder of UN-SAM: one set of learned queries per domain (UN-SAM, section III-C)."""

from collections.abc import Sequence

import torch
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn

from nucsam_monai.networks.sam import SAMVariant, build_mask_decoder
from nucsam_monai.networks.sam.two_way import run_two_way
from nucsam_monai.networks.sam.upscaling import pixels_to_maps, upscale_cells


class DomainQueryDecoder(nn.Module):
    """SAM's two-way transformer and up-scaling, asked by the queries of one domain.

    SAM's IoU token, IoU head and mask tokens are gone; every query has a hyper-network of its own. Queries
    are kept domain by domain: a row of one common table would get a gradient of zero instead of none while
    another domain trains, and an optimizer's momentum or weight decay would move it.

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
        self.queries = nn.ParameterList(torch.randn(count, channels) for count in queries_per_domain)
        sam_decoder = build_mask_decoder(variant)
        self.transformer = sam_decoder.transformer
        self.output_upscaling = sam_decoder.output_upscaling
        self.output_hypernetworks_mlps = nn.ModuleList(
            nn.ModuleList(MLP(channels, channels, channels // 8, 3) for _ in range(count))
            for count in queries_per_domain
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
        batch, _, *grid = embedding.shape
        asked = list(self.queries) if self.joint_queries else [self.queries[domain]]
        first = sum(len(queries) for queries in self.queries[:domain]) if self.joint_queries else 0
        queries = torch.cat(asked)
        tokens = queries.expand(batch, -1, -1)
        if prompt_tokens is not None:
            tokens = torch.cat([tokens, prompt_tokens.to(tokens.dtype)], dim=1)
        # Each image is asked once, so it counts as a prompt with a dense embedding of its own.
        tokens, cells = run_two_way(
            self.transformer,
            embedding.flatten(2).mT.contiguous(),
            image_pe.flatten(2).mT,
            tokens,
            counts=[1] * batch,
            answers=queries.shape[0],
        )
        mlps = self.output_hypernetworks_mlps[domain].children()
        kernels = torch.stack([mlp(tokens[:, first + i]) for i, mlp in enumerate(mlps)], dim=2)
        pixels = upscale_cells(self, cells)
        # (B, h * w, 16, C / 8) @ (B, 1, C / 8, n_q)
        return pixels_to_maps(pixels @ kernels.unsqueeze(1), (grid[0], grid[1]))

    @torch.no_grad()
    def start_from(self, sam_decoder: MaskDecoder, *, copy_token: bool) -> None:
        """Take over SAM's transformer, up-scaling and the hyper-network of its single-mask token.

        Args:
            sam_decoder: SAM's mask decoder with its official weights.
            copy_token: start every query from SAM's single-mask token instead of a normal draw.
        """
        self.transformer.load_state_dict(sam_decoder.transformer.state_dict())
        self.output_upscaling.load_state_dict(sam_decoder.output_upscaling.state_dict())
        for mlps in self.output_hypernetworks_mlps:
            for mlp in mlps.children():
                mlp.load_state_dict(sam_decoder.output_hypernetworks_mlps[0].state_dict())
        if copy_token:
            for queries in self.queries:
                queries.copy_(sam_decoder.mask_tokens.weight[:1].expand_as(queries))
