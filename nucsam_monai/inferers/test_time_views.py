"""The six views of a square image that test-time augmentation averages over."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One way to look at a square image: a mirroring or a rotation by quarter turns.

    Both map pixels exactly onto pixels, and points with them: about the image's centre, which is at
    ``(S - 1) / 2`` where pixel centres are at integers.

    Attributes:
        flip: "x" mirrors left and right, "y" top and bottom.
        quarter_turns: counter-clockwise, 0 to 3; not together with a mirroring.
    """

    flip: Literal["", "x", "y"] = ""
    quarter_turns: int = 0

    def of(self, maps: Tensor) -> Tensor:
        """Return the view of maps ``(..., S, S)``."""
        if self.flip:
            return maps.flip(-1 if self.flip == "x" else -2)
        return torch.rot90(maps, self.quarter_turns, (-2, -1))

    def undo(self, maps: Tensor) -> Tensor:
        """Return the maps ``(..., S, S)`` that ``maps`` are the view of."""
        if self.flip:
            return self.of(maps)
        return torch.rot90(maps, -self.quarter_turns, (-2, -1))

    def of_points(self, points: Tensor, side_px: int) -> Tensor:
        """Return where points ``(..., 2)`` as (x, y) of an image of side ``side_px`` are in the view."""
        x, y = points.unbind(-1)
        last = side_px - 1
        if self.flip == "x":
            x = last - x
        elif self.flip == "y":
            y = last - y
        for _ in range(self.quarter_turns):
            x, y = y, last - x
        return torch.stack([x, y], dim=-1)


IDENTITY = (View(),)

SIX_VIEWS = (
    View(),
    View("x"),
    View("y"),
    View(quarter_turns=1),
    View(quarter_turns=2),
    View(quarter_turns=3),
)
"""The views of PromptNucSeg's test-time augmentation."""
