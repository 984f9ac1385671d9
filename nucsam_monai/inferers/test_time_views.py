"""The views of a square image that test-time augmentation averages over."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One way to look at a square image: a mirroring, then a rotation by quarter turns.

    Both map pixels exactly onto pixels, and points with them: about the image's centre, which is at
    ``(S - 1) / 2`` where pixel centres are at integers.

    Attributes:
        flip: "x" mirrors left and right, "y" top and bottom.
        quarter_turns: counter-clockwise, 0 to 3.
    """

    flip: Literal["", "x", "y"] = ""
    quarter_turns: int = 0

    def of(self, maps: Tensor) -> Tensor:
        """Return the view of maps ``(..., S, S)``."""
        return torch.rot90(self._mirrored(maps), self.quarter_turns, (-2, -1))

    def undo(self, maps: Tensor) -> Tensor:
        """Return the maps ``(..., S, S)`` that ``maps`` are the view of."""
        return self._mirrored(torch.rot90(maps, -self.quarter_turns, (-2, -1)))

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

    def _mirrored(self, maps: Tensor) -> Tensor:
        return maps.flip(-1 if self.flip == "x" else -2) if self.flip else maps


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

EIGHT_VIEWS = tuple(View(flip, turns) for flip in ("", "x") for turns in range(4))
"""Every way in which a square lies on itself."""
