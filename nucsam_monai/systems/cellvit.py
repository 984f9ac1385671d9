"""CellViT by the names of SAM's variants, with the target, the loss and the rule of HoVer-Net."""

from dataclasses import replace

from nucsam_monai.networks.baselines import Built
from nucsam_monai.networks.dense.cellvit import CellViT
from nucsam_monai.networks.sam.variants import SAMVariant, sam_variant
from nucsam_monai.systems.hovernet import HOVERNET
from nucsam_monai.systems.system import Order

_SMALL = SAMVariant(
    name="cellvit_small", depth=4, width=96, heads=3, global_blocks=(1, 3), window=8, pos_grid=16
)


def _build(order: Order) -> Built:
    classes = order.classes if order.classes > 1 else 0
    variant = sam_variant(order.variant)
    if order.small:
        return Built(CellViT(_SMALL, classes, widths=(8, 16, 32, 64)), variant.patch)
    return Built(CellViT(variant, classes), variant.patch)


CELLVIT = replace(HOVERNET, build=_build, sizes=("small", "standard"))
"""By ``cellvit-<SAM variant>``; the small one has an encoder of four blocks whatever the variant."""
