"""Draw the data flow of every method for the documentation: ``docs/figures/<bundle>.svg``.

Example:
    python scripts/draw_methods.py --output_dir docs/figures
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from nucsam_monai.apps.command_line import run_command

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 66, 34, 20, 12
COLOURS = {"data": ("#ffffff", "#78909c"), "sam": ("#dbe7fb", "#3f51b5"), "own": ("#ffe9cf", "#e07b00")}
MEANINGS = {"data": "data", "sam": "part of SAM", "own": "part of the method"}
STYLE = "font-family='system-ui, Segoe UI, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Box:
    """A box of a figure.

    Attributes:
        column: its place from the left; halves are allowed, as for ``row``.
        row: its place from the top.
        kind: a key of :data:`COLOURS`.
        title: what it is.
        lines: what it does, below the title.
    """

    column: float
    row: float
    kind: str
    title: str
    lines: tuple[str, ...] = ()

    @property
    def left(self) -> float:
        """The left side in pixels."""
        return MARGIN + self.column * (WIDTH + GAP_X)

    @property
    def top(self) -> float:
        """The upper side in pixels."""
        return MARGIN + self.row * (HEIGHT + GAP_Y)


@dataclass(frozen=True)
class Figure:
    """The boxes of a method by short names, and which gives what to which."""

    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str], ...]


FIGURES = {
    "unsam": Figure(
        {
            "image": Box(0, 0, "data", "image", ("crop or tile of 256 px",)),
            "domain": Box(0, 1.5, "data", "domain", ("a name, or the mean of all",)),
            "encoder": Box(
                1, 0.75, "sam", "DT-Encoder", ("SAM's encoder, a bypass", "in common + per domain")
            ),
            "spgen": Box(2, 0, "own", "SPGen", ("predicts a mask prompt", "from four levels")),
            "queries": Box(
                2, 1.5, "own", "domain queries", ("nucleus; distance,", "if instances are learned")
            ),
            "decoder": Box(3, 0.75, "sam", "DQ-Decoder", ("SAM's two-way decoder,", "with these queries")),
            "maps": Box(4, 0.75, "data", "maps", ("nucleus, distance",)),
            "nuclei": Box(5, 0.75, "data", "nuclei", ("8-connected parts, or", "watershed on distance")),
        },
        (
            ("image", "encoder"),
            ("domain", "encoder"),
            ("domain", "queries"),
            ("encoder", "spgen"),
            ("encoder", "decoder"),
            ("spgen", "decoder"),
            ("queries", "decoder"),
            ("decoder", "maps"),
            ("maps", "nuclei"),
        ),
    ),
    "promptnucseg": Figure(
        {
            "image": Box(0, 0.75, "data", "image"),
            "prompter": Box(1, 0, "own", "prompter", ("backbone, pyramid,", "grid of anchor points")),
            "anchors": Box(2, 0, "own", "two heads", ("move each anchor twice,", "classify it")),
            "points": Box(3, 0, "data", "points", ("one per nucleus,", "with a class")),
            "encoder": Box(1, 1.5, "sam", "SAM's encoder", ("overlapping tiles",)),
            "decoder": Box(3, 1.5, "sam", "segmentor", ("SAM's prompt encoder", "and mask decoder")),
            "masks": Box(4, 1.5, "data", "masks", ("one per point, with", "predicted IoU as score")),
            "nuclei": Box(5, 1.5, "data", "nuclei", ("whole masks replace cut", "ones, box NMS")),
        },
        (
            ("image", "prompter"),
            ("image", "encoder"),
            ("prompter", "anchors"),
            ("anchors", "points"),
            ("points", "decoder"),
            ("encoder", "decoder"),
            ("decoder", "masks"),
            ("masks", "nuclei"),
        ),
    ),
    "sac": Figure(
        {
            "image": Box(0, 0.75, "data", "image"),
            "generator": Box(1, 0, "own", "auto-prompt generator", ("a small U-Net with a", "separate loss")),
            "points": Box(2, 0, "data", "points", ("as many on nuclei", "as on background")),
            "expert": Box(2, 0.95, "data", "expert's points", ("if given",)),
            "encoder": Box(1, 1.9, "sam", "SAM's encoder", ("LoRA on queries", "and values")),
            "decoder": Box(3, 1.9, "sam", "SAM's decoder", ("all points are one", "prompt")),
            "mask": Box(4, 1.9, "data", "mask", ("of all nuclei",)),
            "nuclei": Box(5, 1.9, "data", "nuclei", ("8-connected parts,", "or watershed")),
        },
        (
            ("image", "generator"),
            ("image", "encoder"),
            ("generator", "points"),
            ("points", "decoder"),
            ("expert", "decoder"),
            ("encoder", "decoder"),
            ("decoder", "mask"),
            ("mask", "nuclei"),
        ),
    ),
    "cfrsam": Figure(
        {
            "image": Box(0, 0.9, "data", "image"),
            "prompter": Box(1, 0, "own", "prompter", ("that of PromptNucSeg",)),
            "points": Box(2, 0, "data", "points", ("one per nucleus,", "with a class")),
            "encoder": Box(1, 0.9, "sam", "SAM's encoder", ("frozen; two MALA", "adapters per block")),
            "hmfm": Box(2, 0.9, "own", "HMFM", ("weights and sums", "four levels")),
            "decoder": Box(3, 0.9, "sam", "SAM's decoder", ("coarse masks, a quarter", "of the resolution")),
            "mcbe": Box(1, 1.8, "own", "MCBE", ("contrast of the image", "at four scales")),
            "bgff": Box(4, 0.9, "own", "BGFF", ("refines each mask at full", "resolution, and its edge")),
            "nuclei": Box(5, 0.9, "data", "nuclei", ("whole masks replace cut", "ones, box NMS")),
        },
        (
            ("image", "prompter"),
            ("image", "encoder"),
            ("image", "mcbe"),
            ("prompter", "points"),
            ("points", "decoder"),
            ("encoder", "hmfm"),
            ("hmfm", "decoder"),
            ("decoder", "bgff"),
            ("mcbe", "bgff"),
            ("bgff", "nuclei"),
        ),
    ),
    "sam_eunet3p": Figure(
        {
            "image": Box(0, 0.75, "data", "image"),
            "unet": Box(1, 0, "own", "eU-Net3+ encoder", ("gated linear units,", "blurred pooling")),
            "large": Box(1, 1.5, "data", "the image, enlarged", ("to SAM's size",)),
            "sam": Box(2, 1.5, "sam", "SAM's encoder", ("frozen; its features", "are cached on disk")),
            "xgfb": Box(3, 0.75, "own", "X-GFB", ("weights channels by both,", "then self-attention")),
            "decoder": Box(4, 0, "own", "eU-Net3+ decoder", ("every level sees", "all others")),
            "nuclei": Box(5, 0, "data", "mask, then nuclei", ("8-connected parts,", "or watershed")),
        },
        (
            ("image", "unet"),
            ("image", "large"),
            ("large", "sam"),
            ("sam", "xgfb"),
            ("unet", "xgfb"),
            ("unet", "decoder"),
            ("xgfb", "decoder"),
            ("decoder", "nuclei"),
        ),
    ),
    "baselines": Figure(
        {
            "image": Box(0, 0, "data", "image", ("crop or tile of 256 px",)),
            "network": Box(1, 0, "own", "network", ("named by --baseline",)),
            "mask": Box(2, 0, "data", "mask", ("HoVer-Net: and distances",)),
            "nuclei": Box(3, 0, "data", "nuclei", ("8-connected parts,", "or watershed")),
        },
        (("image", "network"), ("network", "mask"), ("mask", "nuclei")),
    ),
    "detectors": Figure(
        {
            "image": Box(0, 0.5, "data", "image", ("crop or tile of 256 px",)),
            "pyramid": Box(1, 0.5, "own", "ResNet and pyramid", ("features of", "several strides")),
            "proposals": Box(2, 0, "own", "region proposals", ("from anchors of", "8 to 128 px")),
            "heads": Box(3, 0.5, "own", "heads", ("class, box and mask", "of each region")),
            "masks": Box(4, 0.5, "data", "masks", ("one per nucleus, with", "class and score")),
            "nuclei": Box(5, 0.5, "data", "nuclei", ("duplicates removed", "across tiles")),
        },
        (
            ("image", "pyramid"),
            ("pyramid", "proposals"),
            ("pyramid", "heads"),
            ("proposals", "heads"),
            ("heads", "masks"),
            ("masks", "nuclei"),
        ),
    ),
    "compact_sam": Figure(
        {
            "image": Box(0, 0, "data", "crop"),
            "truth": Box(0, 1, "data", "annotation", ("of the same crop",)),
            "points": Box(1, 1, "data", "points", ("random, one per nucleus;", "half with a negative one")),
            "encoder": Box(1, 0, "sam", "SAM's encoder", ("vit_tiny by default",)),
            "decoder": Box(2, 1, "sam", "SAM's decoder", ("one mask per point",)),
            "dense": Box(2, 0, "own", "dense auxiliary head", ("in training only",)),
            "file": Box(3, 1, "data", "sam.safetensors", ("start of the", "other methods")),
        },
        (
            ("image", "encoder"),
            ("truth", "points"),
            ("points", "decoder"),
            ("encoder", "decoder"),
            ("encoder", "dense"),
            ("decoder", "file"),
        ),
    ),
}


def main(output_dir: str = "docs/figures") -> None:
    """Draw all figures.

    Args:
        output_dir: made if missing.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        (folder / f"{name}.svg").write_text(svg_of(figure), encoding="utf-8")


def svg_of(figure: Figure) -> str:
    """Return a figure as SVG."""
    boxes = list(figure.boxes.values())
    width = max(box.left for box in boxes) + WIDTH + MARGIN
    bottom = max(box.top for box in boxes) + HEIGHT
    arrows = [_arrow(figure.boxes[start], figure.boxes[end]) for start, end in figure.arrows]
    kinds = [kind for kind in COLOURS if any(box.kind == kind for box in boxes)]
    parts = [*arrows, *map(_box, boxes), *_legend(kinds, bottom + 18)]
    head = (
        "<svg xmlns='http://www.w3.org/2000/svg' "
        f"viewBox='0 0 {width:g} {bottom + 46:g}' width='{width:g}' {STYLE}>"
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0 0 8 4 0 8z' fill='#455a64'/></marker></defs>"
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _box(box: Box) -> str:
    fill, border = COLOURS[box.kind]
    middle = box.left + WIDTH / 2
    first = box.top + HEIGHT / 2 + 5 - 8 * len(box.lines)
    texts = [
        f"<text x='{middle:g}' y='{first:g}' font-size='13' font-weight='600'>{escape(box.title)}</text>"
    ]
    for number, line in enumerate(box.lines, start=1):
        texts.append(
            f"<text x='{middle:g}' y='{first + 16 * number:g}' font-size='11.5'>{escape(line)}</text>"
        )
    shape = f"<rect x='{box.left:g}' y='{box.top:g}' width='{WIDTH}' height='{HEIGHT}' rx='6'"
    return f"{shape} fill='{fill}' stroke='{border}'/><g text-anchor='middle' fill='#263238'>{''.join(texts)}</g>"


def _arrow(start: Box, end: Box) -> str:
    """Return the arrow from one box to another: straight, or with two corners in the gap before the second."""
    if start.column == end.column:
        down = end.row > start.row
        x = start.left + WIDTH / 2
        path = f"M{x:g} {start.top + HEIGHT * down:g}V{end.top + HEIGHT * (not down):g}"
    else:
        y_from, y_to = start.top + HEIGHT / 2, _entry(start, end)
        path = f"M{start.left + WIDTH:g} {y_from:g}H{end.left - GAP_X / 2:g}V{y_to:g}H{end.left:g}"
    return f"<path d='{path}' fill='none' stroke='#455a64' stroke-width='1.3' marker-end='url(#tip)'/>"


def _entry(start: Box, end: Box) -> float:
    """Return the height at which an arrow enters: those from above and below end a little off the middle."""
    middle = end.top + HEIGHT / 2
    return middle if start.row == end.row else middle + (14 if start.row > end.row else -14)


def _legend(kinds: Sequence[str], top: float) -> list[str]:
    parts = []
    for number, kind in enumerate(kinds):
        fill, border = COLOURS[kind]
        x = MARGIN + 150 * number
        parts.append(
            f"<rect x='{x}' y='{top:g}' width='14' height='14' rx='3' fill='{fill}' stroke='{border}'/>"
        )
        parts.append(
            f"<text x='{x + 21}' y='{top + 11.5:g}' font-size='11.5' fill='#455a64'>{MEANINGS[kind]}</text>"
        )
    return parts


if __name__ == "__main__":
    sys.exit(run_command(main))
