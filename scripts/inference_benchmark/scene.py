"""A synthetic image as large and as crowded as a tile of histology, and what a perfect network would say of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nucsam_monai.data.demo.painter import render_he
from nucsam_monai.data.demo.scene import SceneRecipe, draw_scene
from nucsam_monai.inferers import oracle_prompts
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

_FIELD_PX = 256 * 256  # the area that a recipe's number of nuclei is meant for


@dataclass(frozen=True)
class BenchmarkImage:
    """One image on disk and its truth.

    Attributes:
        path: the PNG file.
        truth: the nuclei that were drawn.
        points: ``(n, 2)`` float32 a point (x, y) in each nucleus.
        radii_px: ``(n,)`` float32 radius of the disc of each nucleus's area.
    """

    path: Path
    truth: NucleiPrediction
    points: NDArray[np.float32]
    radii_px: NDArray[np.float32]

    def foreground(self) -> Tensor:
        """Return the probability ``(1, H, W)`` of a network that knows the truth."""
        return torch.from_numpy(self.truth.instances > 0).float()[None]


def draw_benchmark_image(folder: Path, side_px: int, nuclei: int, seed: int) -> BenchmarkImage:
    """Draw a stained section of ``side_px`` x ``side_px`` pixels with about so many nuclei."""
    rng, slide, look = (np.random.default_rng([seed, stream]) for stream in range(3))
    per_field = round(nuclei * _FIELD_PX / side_px**2)
    recipe = SceneRecipe((per_field, per_field), (7.0, 13.0), 0.75, 0.55, 0.02, 0.45)
    scene = draw_scene(rng, (side_px, side_px), recipe)
    path = folder / f"synthetic_{side_px}_{seed}.png"
    Image.fromarray(render_he(scene, slide, look, clutter=True)).save(path)
    truth = prediction_from_instances(scene.instances)
    radii = np.sqrt(truth.table["area_px"] / np.pi).astype(np.float32)
    return BenchmarkImage(path, truth, np.asarray(oracle_prompts(truth).points, dtype=np.float32), radii)
