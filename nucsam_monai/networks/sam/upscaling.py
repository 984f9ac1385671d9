"""The mask decoder's up-scaling, computed cell by cell with the channels last."""

from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional


def upscale_cells(decoder: MaskDecoder, cells: Tensor) -> Tensor:
    """Up-scale an image embedding four times, leaving the pixels in the order of their cells.

    Transposed convolutions whose stride is their kernel's side never overlap: each is a matrix product per
    cell. So nothing is rearranged before the masks are one channel wide, and the normalisation, in float32,
    reads neighbouring numbers.

    Args:
        decoder: the decoder, whose ``output_upscaling`` holds the layers.
        cells: ``(N, P, C)``.

    Returns:
        ``(N, P, 16, C / 8)``: the 16 pixels of each cell, quarter by quarter; see :func:`pixels_to_maps`.
    """
    first, norm, activation, second, last_activation = decoder.output_upscaling
    cells = _transposed_convolution(first, cells)
    weight, bias = norm.weight.float(), norm.bias.float()
    normed = functional.layer_norm(cells.float(), weight.shape, weight, bias, norm.eps).to(cells.dtype)
    return last_activation(_transposed_convolution(second, activation(normed))).flatten(2, 3)


def pixels_to_maps(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange ``(N, P, 16, M)`` pixels of P = h * w cells to maps ``(N, M, 4h, 4w)``."""
    count, _, _, channels = pixels.shape
    height, width = grid
    # N, h, w, quarter's row and column, pixel's row and column inside the quarter, M
    blocks = pixels.reshape(count, height, width, 2, 2, 2, 2, channels).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return blocks.reshape(count, channels, 4 * height, 4 * width)


def _transposed_convolution(convolution: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """Apply a 2 x 2 convolution of stride 2 to ``(..., C)``; the four pixels go to ``(..., 4, C')``."""
    # (C, C', 2, 2) -> (4 * C', C)
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return functional.linear(cells, weight, bias).unflatten(-1, (4, -1))
