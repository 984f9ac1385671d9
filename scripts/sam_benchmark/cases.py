"""What is measured: cases, and the implementations that compete in each of them."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

PARTS = ("encoder", "decoder")
MODES = ("forward", "train")
PRECISIONS = ("fp32", "bf16")
COMPILED = {"ours_compiled": "default", "ours_graphs": "reduce-overhead"}
"""Implementations that are compiled, and the mode; ``reduce-overhead`` records CUDA graphs."""

IMPLEMENTATIONS = ("stock", "ours", *COMPILED, "ours_checkpointed", "timm")
MATRIX: dict[str, Any] = {
    "variants": ("vit_tiny", "vit_b", "vit_l", "vit_h"),
    "sizes": (256, 512, 1024),
    "batches": (1, 4),
    "precisions": PRECISIONS,
    "parts": PARTS,
    "modes": MODES,
    "prompts": (1, 32, 256, 1000),
    "implementations": ("stock", "ours", "timm"),
}


@dataclass(frozen=True, order=True)
class Case:
    """One thing that all implementations do with the same weights and inputs.

    Attributes:
        part: ``encoder`` or ``decoder``.
        variant: name of the SAM variant.
        size: side of the square images in pixels.
        batch: number of images.
        mode: ``forward``, or ``train`` for forward pass, backward pass and optimizer step. In training the
            encoder learns low-rank updates of queries and values, the decoder all its weights.
        prompts: point prompts in all, spread evenly over the images; 0 for the encoder.
    """

    part: str
    variant: str
    size: int
    batch: int
    mode: str
    prompts: int = 0

    @property
    def key(self) -> str:
        """The case's name in the JSON file."""
        prompts = f" {self.prompts} prompts" if self.prompts else ""
        return f"{self.part} {self.variant} {self.size} px batch {self.batch} {self.mode}{prompts}"

    @property
    def prompts_per_image(self) -> list[int]:
        """The number of prompts of each image; the first ones have one more where it is not even."""
        share, rest = divmod(self.prompts, self.batch)
        return [share + (image < rest) for image in range(self.batch)]


@dataclass(frozen=True)
class Contender:
    """An implementation in a precision."""

    implementation: str
    precision: Literal["fp32", "bf16"]

    @property
    def key(self) -> str:
        """The contender's name in the JSON file."""
        return f"{self.implementation} {self.precision}"

    def takes(self, case: Case) -> bool:
        """Whether there is such an implementation for ``case``."""
        if self.implementation == "timm":
            return case.part == "encoder" and case.variant == "vit_b"
        if self.implementation == "ours_checkpointed":
            return case.part == "encoder" and case.mode == "train"
        return True


@dataclass(frozen=True)
class Settings:
    """What holds for all cases of a run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: threads of the CPU.
        repeats: rounds in which every contender is timed once.
        seconds_per_case: no further round begins after this time.
        timeout_seconds: a case that takes longer is given up.
        memory_gb: a contender that needs more main memory, weights included, is left out.
        stock_chunk: prompts that the stock decoder gets at a time; 0 for all.
        seed: seed of weights and inputs.
    """

    device: str
    threads: int
    repeats: int
    seconds_per_case: float
    timeout_seconds: float
    memory_gb: float
    stock_chunk: int
    seed: int


def select_cases(selection: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Return the cases of a selection from :data:`MATRIX`, the small ones first."""
    cases = []
    for part in selection["parts"]:
        prompts = selection["prompts"] if part == "decoder" else (0,)
        axes = (selection[axis] for axis in ("variants", "sizes", "batches", "modes"))
        cases += [
            Case(part, variant, size, batch, mode, count)
            for variant, size, batch, mode, count in itertools.product(*axes, prompts)
        ]
    return cases


PRESETS: dict[str, list[Case]] = {
    "memory": [
        Case("encoder", "vit_b", 256, 4, "train"),
        Case("encoder", "vit_h", 1024, 1, "forward"),
    ],
    "targets": [
        Case("encoder", "vit_b", 256, 1, "forward"),
        Case("encoder", "vit_b", 1024, 1, "forward"),
        Case("encoder", "vit_b", 256, 4, "train"),
        Case("decoder", "vit_b", 256, 1, "forward", prompts=256),
    ],
}
"""Selections with a name: the memory that users ask for, and the ratios that the work is judged by."""


def contenders(case: Case, implementations: Iterable[str], precisions: Iterable[str]) -> list[Contender]:
    """Return who takes part in ``case``."""
    pairs = [Contender(name, precision) for precision in precisions for name in implementations]
    return [contender for contender in pairs if contender.takes(case)]


def as_dict(value: Case | Settings) -> dict[str, Any]:
    """Return the fields by name."""
    return dataclasses.asdict(value)
