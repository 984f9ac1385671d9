"""List all systems by name, and provide their parts to the bundle ``baselines``."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from monai.transforms import Compose, CopyItemsd, DeleteItemsd, Lambdad
from torch import nn

from nucsam_monai.data import class_names as classes_of_dataset
from nucsam_monai.data.label_files import read_classes
from nucsam_monai.networks.baselines import DENSE_BUILDERS, Baseline, Built, Size
from nucsam_monai.networks.sam import read_header, trained_setting
from nucsam_monai.networks.sam.weights import open_safetensors
from nucsam_monai.systems.cdnet import CDNET
from nucsam_monai.systems.cellvit import CELLVIT
from nucsam_monai.systems.cppnet import CPPNET
from nucsam_monai.systems.dcan import DCAN
from nucsam_monai.systems.dist import DIST
from nucsam_monai.systems.encoders import ENCODER_SYSTEMS
from nucsam_monai.systems.hovernet import HOVERNET
from nucsam_monai.systems.micronet import MICRONET
from nucsam_monai.systems.stardist import STARDIST
from nucsam_monai.systems.system import ForegroundChanneld, Order, OwnInstancesd, OwnTargetd, System
from nucsam_monai.systems.types import with_types
from nucsam_monai.systems.unets import UNETS
from nucsam_monai.transforms.composites import Steps, chain, distance_targets, to_instances
from nucsam_monai.transforms.targets import NucleusCentroidsd
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import InstanceRule


def _dense(builder: Callable[[bool, int], Built], order: Order) -> Built:
    return builder(order.small, order.outputs)


SYSTEMS: Mapping[str, System] = {
    **{name: System(partial(_dense, builder)) for name, builder in DENSE_BUILDERS.items()},
    "hovernet": HOVERNET,
    "stardist": with_types(STARDIST),
    "cppnet": with_types(CPPNET),
    "dcan": with_types(DCAN),
    "dist": with_types(DIST),
    "cdnet": with_types(CDNET),
    "micronet": MICRONET,
    **ENCODER_SYSTEMS,
    **UNETS,
    "cellvit-*": CELLVIT,
}
"""A key that ends in ``-*`` stands for variants, as of the encoder in ``deeplabv3plus-resnet50``."""

SystemRule = InstanceRule | Literal["own"]
"""How nuclei are made of a system's output: by a rule of dense networks, or by the system's ``own``."""

_NO_CLASSES = ("nucleus",)


def system_named(name: str) -> System:
    """Return a system by name; unknown names, as of users' own networks, stand for dense systems like the U-Net."""
    return SYSTEMS.get(_key(name), SYSTEMS["unet"])


def _key(name: str) -> str:
    """Return the key of a system's name."""
    return name if name in SYSTEMS else name.partition("-")[0] + "-*"


def build_network(
    name: str,
    size: Size = "standard",
    instances: SystemRule | None = None,
    class_names: Sequence[str] = _NO_CLASSES,
) -> Baseline:
    """Build the network of a system.

    Args:
        name: key of :data:`SYSTEMS`, with a variant instead of its asterisk.
        size: one of the sizes of the system.
        instances: post-processing: ``own`` for that of the system, ``components``, ``watershed``, or ``distance``, for
            which a dense network also learns a distance map. Default: :func:`default_rule`.
        class_names: names of the classes of nuclei; systems without classes ignore them.

    Raises:
        ConfigurationError: the name or size is unknown, or the system does not have this size, variant or
            post-processing.
    """
    if _key(name) not in SYSTEMS:
        raise ConfigurationError(f"baseline '{name}': expected one of {', '.join(SYSTEMS)}.")
    system = SYSTEMS[_key(name)]
    if size not in system.sizes:
        raise ConfigurationError(f"baseline '{name}' of size '{size}': expected {' or '.join(system.sizes)}.")
    rule = instances or default_rule(name)
    _check_rule(name, system, rule)
    names = class_names if system.knows_classes else _NO_CLASSES
    outputs = 2 if rule == "distance" else 1
    order = Order(size, outputs, len(names), name.partition("-")[2])
    return Baseline(name, size, outputs, system.build(order), names)


def default_rule(name: str) -> SystemRule:
    """Return the default post-processing of a system: its own if it has one, else ``components``."""
    return "own" if system_named(name).rule else "components"


def trained_rule(checkpoint: Path | str | None, name: str) -> SystemRule:
    """Return the post-processing that weights were trained for, or :func:`default_rule` without weights.

    Older weights do not name their system among their settings. In their time the setting had no effect on HoVer-Net,
    so it is passed over.
    """
    default = default_rule(name)
    if default == "own" and trained_setting(checkpoint, "baseline", None) is None:
        return default
    trained: SystemRule = trained_setting(checkpoint, "instances", default)
    return trained


def trained_size(checkpoint: Path | str | None) -> Size:
    """Return the size of the network that weights were trained for; ``standard`` without weights."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return "standard"
    size: Size = json.loads(read_header(checkpoint).get("options", "{}")).get("size", "standard")
    return size


def trained_classes(checkpoint: Path | str | None) -> list[str]:
    """Return the names of the classes that weights distinguish; only "nucleus" without classes."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return [*_NO_CLASSES]
    return [
        str(name) for name in json.loads(read_header(checkpoint).get("class_names", json.dumps(_NO_CLASSES)))
    ]


def classes_of(
    name: str,
    dataset_dir: str | Path,
    weights: str | Path | None = None,
    output_dir: str | Path = "",
    resume: bool = False,
) -> list[str]:
    """Return the names of the classes that a system learns from a dataset; only "nucleus" if it learns none.

    A training that continues from weights or a state without classes goes on without: they may be older than the
    system's head for classes.

    Args:
        name: name of the system.
        dataset_dir: dataset folder, or a folder with several datasets.
        weights: weights file to start from.
        output_dir: output folder of the training.
        resume: whether to continue the training whose state is in ``output_dir``.
    """
    earlier = [Path(weights)] if weights else []
    earlier += [Path(output_dir, "training_state.safetensors")] if resume else []
    known = system_named(name).knows_classes
    if not known or any(file.is_file() and not _has_classes(file) for file in earlier):
        return [*_NO_CLASSES]
    return classes_of_dataset(dataset_dir)


def _has_classes(path: Path) -> bool:
    """Return whether weights name classes in their header, or a training state among its settings."""
    with open_safetensors(path) as file:
        header = file.metadata() or {}
    settings = json.loads(header.get("settings", "{}"))
    return "class_names" in header or settings.get("class_names", str([*_NO_CLASSES])) != str([*_NO_CLASSES])


def evaluated_classes(class_names: Sequence[str], dataset_dir: str | Path) -> list[str]:
    """Return the classes in which a network and a dataset agree; only "nucleus" if they differ."""
    typed = len(class_names) > 1 and classes_of_dataset(dataset_dir) == list(class_names)
    return list(class_names) if typed else [*_NO_CLASSES]


def true_classes(class_names: Sequence[str]) -> Steps:
    """Return the transforms that add the class of each true nucleus, for metrics of several classes."""
    if len(class_names) == 1:
        return []
    return [NucleusCentroidsd("instances"), DeleteItemsd(["classes", "mask", "points"])]


def read_classes_of(class_names: Sequence[str]) -> Steps:
    """Return the transforms that read the classes of an item's nuclei, if there are several classes."""
    if len(class_names) == 1:
        return []
    return [Lambdad("classes", func=read_classes, allow_missing_keys=True)]


def own_targets(name: str, instances: SystemRule, class_names: Sequence[str] = _NO_CLASSES) -> Steps:
    """Return the transforms that replace ``label``, so far the foreground, by the training target of a system.

    Args:
        name: name of the system.
        instances: post-processing that the network is trained for.
        class_names: names of the classes of nuclei.
    """
    system = system_named(name)
    if system.target is None:
        return distance_targets("distance") if instances == "distance" else []
    return [OwnTargetd(system.target, with_classes=system.knows_classes and len(class_names) > 1)]


def own_loss(name: str, dense: nn.Module) -> nn.Module:
    """Return the training loss of a system; ``dense`` is that of dense systems."""
    return system_named(name).loss(dense)


def system_instances(
    name: str,
    threshold: float,
    instances: SystemRule,
    distance_rule: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = _NO_CLASSES,
    *,
    with_truth: bool = False,
) -> Compose:
    """Turn the maps ``pred`` of a system into nuclei.

    Args:
        name: name of the system.
        threshold: threshold of the foreground probability.
        instances: ``own``, or a rule of :class:`~nucsam_monai.transforms.ProbabilityToInstancesd`, which takes the
            probability alone, or of a dense system the distance map as well.
        distance_rule: options of the rule ``distance``.
        class_names: names of the classes of nuclei, for the rule ``own``.
        with_truth: keep the true label map under ``label_instances``, for metrics.

    Raises:
        ConfigurationError: a rule that the system cannot be used with.
    """
    system = system_named(name)
    _check_rule(name, system, instances)
    if system.rule is not None and instances == "own":
        truth = CopyItemsd("instances", names="label_instances") if with_truth else None
        return chain([OwnInstancesd(system.rule, threshold, class_names), truth])
    foreground = ForegroundChanneld() if system.rule is not None else None
    steps = to_instances(threshold, cast(InstanceRule, instances), distance_rule, with_truth=with_truth)
    return chain([foreground, *steps.transforms])


def _check_rule(name: str, system: System, instances: SystemRule) -> None:
    if instances == "own" and system.rule is None:
        raise ConfigurationError(
            f"instances 'own': {name} has no rule of its own. Take components, watershed or distance."
        )
    if instances == "distance" and system.rule is not None:
        raise ConfigurationError(
            f"instances 'distance': {name} learns maps of its own. Take own, or components or watershed where one of "
            "them is the foreground."
        )
    if instances != "own" and not system.has_foreground:
        raise ConfigurationError(
            f"instances '{instances}': {name} has no map of the foreground. Take own, its rule."
        )
