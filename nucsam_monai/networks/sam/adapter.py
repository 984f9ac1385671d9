"""The one way in which a method changes a block of the image encoder without touching the encoder."""

from torch import Tensor, nn


class BlockAdapter(nn.Module):
    """Hooks of one encoder block; this base class changes nothing.

    A method overrides the hooks that it needs, keeps one adapter per block in its own network (so that
    SAM's state-dict keys never change) and passes the sequence to
    :meth:`~nucsam_monai.networks.sam.image_encoder.ImageEncoder.forward`. With hooks, a block computes::

        n = LN1(x);  qkv = adapter.qkv(n, Linear(n))
        y = adapter.windows(Attention(qkv))             # still split into windows
        x = x + adapter.after_attention(y)              # windows merged, padding removed
        n = LN2(x);  x = x + MLP(n) + adapter.beside_mlp(n)
        x = adapter.after_block(x)

    Hooks must not write into their arguments: activation checkpointing and ``torch.compile`` need them
    unchanged.

    Example:
        >>> class HalfAttention(BlockAdapter):
        ...     def after_attention(self, attended: Tensor) -> Tensor:
        ...         return 0.5 * attended
    """

    @property
    def acts_in_windows(self) -> bool:
        """Whether :meth:`windows` is overridden, so that padded cells must be attended for as well."""
        return type(self).windows is not BlockAdapter.windows

    def qkv(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Change the queries, keys and values of the real (not padded) tokens.

        Args:
            tokens: ``(B, h, w, C)`` normalised tokens, the input of SAM's own projection.
            qkv: ``(B, h, w, 3C)`` its output: queries, keys, values side by side.
        """
        return qkv

    def windows(self, attended: Tensor) -> Tensor:
        """Change the attention's output while it is split into windows, padded cells included.

        Args:
            attended: ``(B * windows, side, side, C)``; ``(B, h, w, C)`` in a global block.
        """
        return attended

    def after_attention(self, attended: Tensor) -> Tensor:
        """Change the attention branch ``(B, h, w, C)`` before it is added to the residual stream."""
        return attended

    def beside_mlp(self, normed: Tensor) -> Tensor | None:
        """Return what is added beside the MLP, from the MLP's input ``(B, h, w, C)``; None for nothing."""
        return None

    def after_block(self, tokens: Tensor) -> Tensor:
        """Change the output ``(B, h, w, C)`` of the block."""
        return tokens
