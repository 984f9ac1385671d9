"""Points from the image alone: the U-Net generator of SAC, the choice of points and when it learns."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.point_selection import DEFAULT_TAU, PointPrompts, select_points
from nucsam_monai.networks.blocks.unet_generator import UNetGenerator
from nucsam_monai.networks.blocks.unit_rgb import UnitRGB
from nucsam_monai.utils.errors import ConfigurationError

Stage = Literal["joint", "generator", "segmenter", "truth"]
"""What an epoch trains: both parts, one of them alone, or both with points chosen from the ground truth."""


@dataclass(frozen=True)
class GeneratorOptions:
    """The auto-prompt generator, its points and its training.

    Attributes:
        n_points: points on nuclei, and as many on background; with 0 there is no generator.
        n_points_test: the same in evaluation where it shall differ. 0 leaves a network that was trained with
            auto points to the points of the user, or to none (SAC, Table 4).
        selection: ``O`` centroids, ``R`` random pixels.
        tau: probability from which on a pixel can be chosen; None is 0.5 for ``O`` and 0.9 for ``R``.
        input_size: side in pixels that the generator sees the image at; None is the image's own.
        training: ``joint`` trains both parts from the start; ``pretrain`` trains the generator alone for
            ``pretrain_epochs`` and freezes it then; ``warmup`` chooses points from the ground truth for
            ``warmup_epochs``, as those of an untrained generator are random.
        pretrain_epochs: see ``training``.
        warmup_epochs: see ``training``.
        seed: of the selection in evaluation, which gives an image the same points every time.
    """

    n_points: int = 1
    n_points_test: int | None = None
    selection: Literal["O", "R"] = "O"
    tau: float | None = None
    input_size: int | None = None
    training: Literal["joint", "pretrain", "warmup"] = "joint"
    pretrain_epochs: int = 30
    warmup_epochs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_points", "n_points_test", "input_size", "pretrain_epochs", "warmup_epochs", "seed"):
            value, least = getattr(self, name), int(name == "input_size")
            if value is not None and value < least:
                raise ConfigurationError(f"generator.{name} {value}: expected {least} or more.")
        if self.tau is not None and not 0 <= self.tau <= 1:
            raise ConfigurationError(f"generator.tau {self.tau}: expected a probability from 0 to 1.")
        if self.n_points_test and not self.n_points:
            raise ConfigurationError(
                f"generator.n_points_test {self.n_points_test}: a network without auto points "
                "(generator.n_points 0) has no generator that could propose any in evaluation."
            )

    @property
    def threshold(self) -> float:
        """The probability from which on a pixel can be chosen."""
        return DEFAULT_TAU[self.selection] if self.tau is None else self.tau

    def stage(self, epoch: int) -> Stage:
        """Return what the 0-based ``epoch`` trains."""
        if self.n_points and self.training == "pretrain":
            return "generator" if epoch < self.pretrain_epochs else "segmenter"
        if self.n_points and self.training == "warmup" and epoch < self.warmup_epochs:
            return "truth"
        return "joint"


class AutoPrompter(nn.Module):
    """Where nuclei are by a small U-Net, and the points that are chosen from it (SAC, auto-prompting).

    Args:
        options: of the generator.
    """

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.options = options
        self.frozen = False
        self.unet = UNetGenerator()
        self.unit_rgb = UnitRGB()

    @property
    def count(self) -> int:
        """Points of each label that are chosen in the current mode."""
        options = self.options
        if self.training or options.n_points_test is None:
            return options.n_points
        return options.n_points_test

    def freeze(self, frozen: bool) -> None:
        """Stop learning, statistics included, or go on; the weights still count as trained ones."""
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "AutoPrompter":
        """Switch to training or evaluation."""
        super().train(mode)
        if self.frozen:
            self.unet.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of nucleus ``(B, 1, H, W)``, or at ``input_size``.

        Args:
            image: ``(B, 3, H, W)``, normalised with SAM's constants.
        """
        rgb = self.unit_rgb(image)
        if self.options.input_size is not None:
            size = (self.options.input_size, self.options.input_size)
            rgb = F.interpolate(rgb, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.unet(rgb)

    def choose(self, probability: Tensor, image_size: tuple[int, int]) -> PointPrompts:
        """Choose points without a gradient; in training others in every step.

        Args:
            probability: ``(B, 1, h, w)`` probability of nucleus, or the ground truth.
            image_size: height and width in pixels of the image that the points are for.
        """
        seed = None if self.training else self.options.seed
        points, labels = select_points(
            probability, self.count, self.options.selection, self.options.threshold, seed=seed
        )
        height, width = probability.shape[-2:]
        scale = points.new_tensor([image_size[1] / width, image_size[0] / height])
        return PointPrompts((points + 0.5) * scale - 0.5, labels)
