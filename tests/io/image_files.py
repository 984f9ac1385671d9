"""Images as files of every format."""

from pathlib import Path

import numpy as np
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
GREY_AS_RGB = np.stack([GREY] * 3, axis=-1)


def write(path: Path, pixels: np.ndarray) -> None:
    """Write a plane of any format; NIfTI, NRRD and MetaImage have x as their first axis."""
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        x_first = pixels.swapaxes(0, 1)
        if pixels.ndim == 3:
            x_first = x_first[:, :, np.newaxis]  # (W, H, 1, 3): a third axis of 3 would be three slices
        nibabel.save(nibabel.Nifti1Image(x_first, np.diag([-1, -1, 1, 1])), path)
    elif path.suffix in (".nrrd", ".mha", ".mhd"):
        import itk

        itk.imwrite(itk.image_from_array(pixels, is_vector=pixels.ndim == 3), str(path))
    else:
        best = {"lossless": True} if path.suffix == ".webp" else {"quality": 100, "subsampling": 0}
        Image.fromarray(pixels).save(path, **(best if path.suffix[1] in "jw" else {}))
