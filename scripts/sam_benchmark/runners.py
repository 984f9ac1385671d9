"""One step of a case by a contender: a forward pass, or a training step."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nucsam_monai.inferers import autocast
from nucsam_monai.networks.sam import SAM, ImageEncoder, build_sam, decode_prompts
from sam_benchmark.cases import COMPILED, Case, Contender, Settings
from sam_benchmark.low_rank import LowRankAdapter, LowRankLinear, draw_updates
from sam_benchmark.stock import (
    draw_sam_weights,
    run_stock_decoder,
    stock_decoder,
    stock_encoder,
    timm_encoder,
)


class Runner:
    """What a contender does in a case.

    Args:
        compute: returns the outputs.
        trained: modules whose weights learn; empty for a forward pass.
        precision: ``fp32`` or ``bf16``.
        device: where it runs.
    """

    def __init__(
        self,
        compute: Callable[[], tuple[Tensor, ...]],
        trained: nn.Module | None,
        precision: str,
        device: torch.device,
    ) -> None:
        self.compute = compute
        self.precision = precision
        self.device = device
        self.parameters = [] if trained is None else list(trained.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5) if self.parameters else None

    def step(self) -> tuple[Tensor, ...]:
        """Do it once and return the outputs, detached."""
        if self.optimizer is None:
            with torch.no_grad(), autocast(self.precision, self.device):
                return self.compute()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.precision, self.device):
            outputs = self.compute()
        torch.stack([_loss(output) for output in outputs]).sum().backward()
        self.optimizer.step()
        return tuple(output.detach() for output in outputs)

    def gradient(self) -> Tensor | None:
        """Return the gradients of the last step as one vector; zeros where a weight was not used."""
        if self.optimizer is None:
            return None
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten() for p in self.parameters]
        )


def _loss(output: Tensor) -> Tensor:
    """Weigh the elements by fixed random numbers: norm and sum of layer-normalised features have no gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(output.shape[1:], generator=generator).to(output.device)
    return (output.float() * weights).mean()


class Workbench:
    """The weights and inputs of one case, from which every contender builds its runner."""

    def __init__(self, case: Case, settings: Settings) -> None:
        self.case = case
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        sam = build_sam(case.variant, case.size)
        draw_sam_weights(sam, settings.seed)
        self.sam: SAM = sam.to(self.device).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(settings.seed)
        if case.part == "encoder":
            self.inputs = self._images(generator)
        else:
            self.inputs = self._prompts(generator)

    def runner(self, contender: Contender) -> Runner:
        """Build what ``contender`` runs; weights that learn are its own, all others are shared."""
        build = self._encoder_runner if self.case.part == "encoder" else self._decoder_runner
        compute, trained = build(contender.implementation)
        return Runner(compute, trained, contender.precision, self.device)

    def _images(self, generator: torch.Generator) -> dict[str, Any]:
        shape = (self.case.batch, 3, self.case.size, self.case.size)
        return {"image": torch.randn(shape, generator=generator).to(self.device)}

    def _prompts(self, generator: torch.Generator) -> dict[str, Any]:
        case, variant = self.case, self.sam.variant
        grid = variant.grid((case.size, case.size))
        embedding = torch.randn((case.batch, variant.embed_channels, *grid), generator=generator)
        points = torch.rand((case.prompts, 1, 2), generator=generator) * (case.size - 1)
        labels = torch.ones((case.prompts, 1), dtype=torch.long)
        sparse, _ = self.sam.prompt_encoder((points.to(self.device), labels.to(self.device)))
        return {
            "embedding": embedding.to(self.device),
            "code": self.sam.prompt_encoder.position_code(grid),
            "sparse": sparse,
            "dense": self.sam.prompt_encoder.no_mask_embed.weight[:, :, None, None].expand(-1, -1, *grid),
            "counts": case.prompts_per_image,
        }

    def _encoder_runner(
        self, implementation: str
    ) -> tuple[Callable[[], tuple[Tensor, ...]], nn.Module | None]:
        image = self.inputs["image"]
        updates = None
        if self.case.mode == "train":
            variant = self.sam.variant
            updates = draw_updates(variant.depth, variant.width, self.settings.seed).to(self.device)
        if implementation in ("stock", "timm"):
            rebuild = stock_encoder if implementation == "stock" else timm_encoder
            foreign = rebuild(self.sam.image_encoder, self.case.size).requires_grad_(False).eval()
            for index, block in enumerate(foreign.blocks if updates is not None else ()):
                block.attn.qkv = LowRankLinear(block.attn.qkv, updates[index])
            forward = foreign if implementation == "stock" else foreign.forward_features
            return lambda: (forward(image),), updates
        encoder = self._our_encoder(implementation)
        adapters = None if updates is None else [LowRankAdapter(update) for update in updates]
        return lambda: (encoder(image, adapters=adapters).embedding,), updates

    def _our_encoder(self, implementation: str) -> ImageEncoder:
        encoder = copy.copy(self.sam.image_encoder)  # shares the weights
        if implementation == "ours_checkpointed":
            encoder.activation_checkpointing = True
        elif implementation in COMPILED:
            encoder.compile(mode=COMPILED[implementation])
        return encoder

    def _decoder_runner(
        self, implementation: str
    ) -> tuple[Callable[[], tuple[Tensor, ...]], nn.Module | None]:
        embedding, code, sparse, dense, counts = self.inputs.values()
        training = self.case.mode == "train"
        if implementation == "stock":
            stock = stock_decoder(self.sam.mask_decoder, self.sam.variant).to(self.device).eval()
            chunk = self.settings.stock_chunk
            stock.requires_grad_(training)
            return lambda: run_stock_decoder(stock, embedding, code, sparse, dense, counts, chunk), (
                stock if training else None
            )
        decoder = copy.deepcopy(self.sam.mask_decoder).requires_grad_(training)
        mode = COMPILED.get(implementation)
        decode = torch.compile(decode_prompts, mode=mode) if mode else decode_prompts
        return lambda: tuple(decode(decoder, embedding, code, sparse, dense, counts)[:2]), (
            decoder if training else None
        )
