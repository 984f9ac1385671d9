"""Systems to compare the methods with, one file each: network, training target, loss and rule that makes nuclei."""

from nucsam_monai.systems.registry import (
    SYSTEMS,
    SystemRule,
    build_network,
    classes_of,
    default_rule,
    own_loss,
    own_targets,
    system_instances,
    system_named,
    trained_classes,
    trained_rule,
)
from nucsam_monai.systems.system import (
    Order,
    OwnInstancesd,
    OwnTargetd,
    Rule,
    System,
    Target,
    class_map,
    require_maps,
)

__all__ = [
    "SYSTEMS",
    "Order",
    "OwnInstancesd",
    "OwnTargetd",
    "Rule",
    "System",
    "SystemRule",
    "Target",
    "build_network",
    "class_map",
    "classes_of",
    "default_rule",
    "own_loss",
    "own_targets",
    "require_maps",
    "system_instances",
    "system_named",
    "trained_classes",
    "trained_rule",
]
