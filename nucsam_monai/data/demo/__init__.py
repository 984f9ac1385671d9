"""Synthetic microscopy to train and test on without a download: four domains and one held out."""

from nucsam_monai.data.demo.plan import (
    DEMO_DOMAINS,
    DemoCounts,
    DemoImage,
    DemoSlot,
    demo_slots,
    draw_demo_image,
)

__all__ = ["DEMO_DOMAINS", "DemoCounts", "DemoImage", "DemoSlot", "demo_slots", "draw_demo_image"]
