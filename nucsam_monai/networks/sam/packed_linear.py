"""A linear layer that keeps its weights in the order in which the CPU multiplies with them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_ROWS = 2**10
"""Most input rows that a packed copy is made for; with more the products themselves take nearly all the time."""


class _Packed(NamedTuple):
    source: Tensor  # shares the weight's memory: while it lives, no other tensor can have its address
    version: int
    rows: int
    weight: Tensor


class PackedLinear(nn.Linear):
    """``nn.Linear`` with the same parameters and values, faster in float32 inference on a CPU with MKL.

    A product of a few hundred rows spends a good part of its time on bringing the weights into blocks, every time
    anew, and is shared badly among threads. Here the second call in a row with the same number of rows keeps the
    blocks for the following ones, at the price of a second copy of the weights. Training, other types and devices,
    tracing and compiling use the plain layer. The copy is dropped when the weight changes; only writing through
    ``weight.data`` leaves no trace in PyTorch and is not noticed.

    Example:
        >>> layer = PackedLinear(4, 2).eval()
        >>> with torch.inference_mode():
        ...     layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    _packed: _Packed | None = None
    _previous_rows: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``(..., in_features)``; the result is ``(..., out_features)``."""
        if not self._can_pack(input):
            return functional.linear(input, self.weight, self.bias)
        rows = input.numel() // self.in_features
        packed = self._packed  # read once: another thread may replace it meanwhile
        if packed is None or packed.rows != rows or not self._is_current(packed):
            if rows != self._previous_rows or not 1 < rows <= MOST_ROWS:
                self._previous_rows = rows
                return functional.linear(input, self.weight, self.bias)
            packed = self._pack(rows)
        return torch.ops.mkl._mkl_linear(input, packed.weight, self.weight, self.bias, rows)

    def _can_pack(self, input: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
            and not torch.is_autocast_enabled("cpu")
            and type(self.weight) is nn.Parameter  # function transforms put other types in its place
            and not self.weight.is_inference()  # such tensors do not count their changes
            and self.weight.is_cpu
            and input.is_cpu
            and input.dtype is torch.float32 is self.weight.dtype
            and _mkl_packs()
        )

    def _is_current(self, packed: _Packed) -> bool:
        return packed.version == self.weight._version and packed.source.data_ptr() == self.weight.data_ptr()

    def _pack(self, rows: int) -> _Packed:
        """Make the copy and keep it, where a change of the weight could be seen."""
        with torch.inference_mode(False), torch.no_grad():
            source = self.weight.detach()
            weight = torch.ops.mkl._mkl_reorder_linear_weight(source, rows)
        packed = _Packed(source, self.weight._version, rows, weight)
        self._packed = packed
        return packed

    def __getstate__(self) -> dict[str, object]:
        """Leave the copy out of copies and pickles: it belongs to this machine's processor."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def _mkl_packs() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
