"""Join the overlays of a folder of results to one picture.

Example:
    python scripts/overlay_sheet.py --overlays output/quickstart/samples --output docs/results/samples.png
"""

import sys
from pathlib import Path

import numpy as np

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import read_image, write_png
from nucsam_monai.utils.errors import ConfigurationError

GAP_PX = 8


def join(pictures: list[np.ndarray]) -> np.ndarray:
    """Return ``(H, W, 3)`` uint8 pictures side by side on white, at the top where their heights differ."""
    height = max(len(picture) for picture in pictures)
    parts = []
    for picture in pictures:
        rest = ((0, height - len(picture)), (0, GAP_PX), (0, 0))
        parts.append(np.pad(picture, rest, constant_values=255))
    return np.concatenate(parts, axis=1)[:, :-GAP_PX]


def main(overlays: str, output: str) -> None:
    """Write the picture.

    Args:
        overlays: a folder with files ``<name>_overlay.png``, as the inference of the bundles writes them.
        output: the PNG file.

    Raises:
        ConfigurationError: there is no such file in the folder.
    """
    files = sorted(Path(overlays).glob("*_overlay.png"))
    if not files:
        raise ConfigurationError(
            f"--overlays {overlays}: no files *_overlay.png. Run an inference into it first."
        )
    write_png(output, join([read_image(file) for file in files]))
    print(f"{output}: {', '.join(file.name.removesuffix('_overlay.png') for file in files)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
