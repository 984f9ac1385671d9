"""DQ-Decoder of UN-SAM: one set of learned queries per domain (UN-SAM, section III-C)."""

from collections.abc import Sequence

import torch
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn
from torch.nn import functional

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
        self.fine_hypernetworks_mlps = nn.ModuleList(
            nn.ModuleList(MLP(channels, channels, variant.fine_channels, 3) for _ in range(count))
            for count in (queries_per_domain if variant.fine_channels else ())
        )

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        domain: int,
        prompt_tokens: Tensor | None = None,
        fine: Tensor | None = None,
    ) -> Tensor:
        """Decode the masks of one domain.

        Args:
            embedding: ``(B, C, h, w)``, the image embedding with the hint added.
            image_pe: ``(1, C, h, w)``, SAM's dense positional code.
            domain: index of the domain.
            prompt_tokens: ``(B, K, C)`` point tokens, where points prompt the decoder.
            fine: ``(B, fine_channels, 8h, 8w)`` of variants with a trunk.

        Returns:
            Mask logits ``(B, n_q, 4h, 4w)`` with one channel per query of the domain, or twice as large with
            ``fine``.
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
        tokens = tokens[:, first:]
        pixels = upscale_cells(self, cells)
        # (B, h * w, 16, C / 8) @ (B, 1, C / 8, n_q)
        kernels = _kernels(self.output_hypernetworks_mlps[domain], tokens)
        masks = pixels_to_maps(pixels @ kernels.unsqueeze(1), (grid[0], grid[1]))
        if fine is None:
            return masks
        # (B, n_q, fine_channels) @ (B, fine_channels, 8h * 8w)
        outline = (_kernels(self.fine_hypernetworks_mlps[domain], tokens).mT @ fine.flatten(2)).unflatten(
            2, fine.shape[-2:]
        )
        masks = functional.interpolate(
            masks.float(), size=fine.shape[-2:], mode="bilinear", align_corners=False
        )
        return masks + outline

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


def _kernels(mlps: nn.Module, tokens: Tensor) -> Tensor:
    """Return the kernels ``(B, channels, n_q)`` of the first n_q of ``(B, T, C)`` tokens."""
    return torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mlps.children())], dim=2)
