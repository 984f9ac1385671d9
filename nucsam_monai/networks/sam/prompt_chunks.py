from torch import Tensor
def prompts_per_chunk(mask_decoder, embedding: Tensor, *, tokens: int, upscaled: bool) -> int:
    return 16
