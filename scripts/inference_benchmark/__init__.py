"""Parts of the benchmark of whole images, from the file that is read to the files that are written."""

from pathlib import Path

from nucsam_monai.utils.paths import bundle_root

STAGES = ("read", "prompter", "encoder", "decoder", "merge", "write")
"""``decoder`` is all of a network behind SAM's encoder, ``merge`` everything from its answers to instances."""

METHODS = sorted(
    file.parents[1].name for file in Path(bundle_root("unsam")).parent.glob("*/configs/inference.json")
)
"""The bundles that can infer."""
