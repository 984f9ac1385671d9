"""Bottleneck adapters: a small MLP after the attention and one beside the MLP of every block (Med-SA)."""

from typing import Literal

from torch import Tensor, nn

from nucsam_monai.networks.sam import BlockAdapter
from nucsam_monai.utils.errors import ConfigurationError


def bottleneck(width: int, ratio: float) -> nn.Sequential:
    """Return Linear ``width -> ratio * width``, GELU, Linear back to ``width``."""
    hidden = max(1, round(ratio * width))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class BottleneckAdapters(BlockAdapter):
    """The two adapters of one block in the MSA baseline of SAC ("Medical SAM Adapter", Wu et al., 2023).

    One follows the attention inside the residual branch, with a skip of its own; the other lies parallel to
    the MLP: ``y + adapter(y)`` and ``MLP(n) + scale * adapter(n)``.

    Args:
        width: encoder width d.
        ratio: hidden width as a multiple of ``width``.
        scale: factor of the parallel adapter.
        init: ``zero_last`` starts from plain SAM (last layers zero), ``torch_default`` does not.

    Raises:
        ConfigurationError: an unknown ``init``.
    """

    def __init__(
        self,
        width: int,
        ratio: float = 0.25,
        scale: float = 0.5,
        init: Literal["zero_last", "torch_default"] = "zero_last",
    ) -> None:
        super().__init__()
        if init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"adapter init '{init}': expected 'zero_last' or 'torch_default'.")
        self.scale = scale
        self.attention = bottleneck(width, ratio)
        self.mlp = bottleneck(width, ratio)
        if init == "zero_last":
            for parameter in (*self.attention[-1].parameters(), *self.mlp[-1].parameters()):
                nn.init.zeros_(parameter)

    def after_attention(self, attended: Tensor) -> Tensor:
        """Return the attention branch ``(B, h, w, C)`` with its adapter added."""
        return attended + self.attention(attended)

    def beside_mlp(self, normed: Tensor) -> Tensor:
        """Return what is added beside the MLP; ``normed`` is ``(B, h, w, C)`` after the block's LN2."""
        return self.scale * self.mlp(normed)
