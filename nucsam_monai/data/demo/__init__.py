"""Draw synthetic microscopy to train and test on without a download: four domains and one held out.

Example:
    >>> from nucsam_monai.data.demo import demo_dataset_dir
    >>> folder = demo_dataset_dir()  # doctest: +SKIP
"""

from nucsam_monai.data.demo.folder import (
    DEMO_DOMAINS,
    DemoCounts,
    DemoImage,
    DemoSlot,
    demo_dataset_dir,
    demo_slots,
    draw_demo_image,
)

__all__ = [
    "DEMO_DOMAINS",
    "DemoCounts",
    "DemoImage",
    "DemoSlot",
    "demo_dataset_dir",
    "demo_slots",
    "draw_demo_image",
]
