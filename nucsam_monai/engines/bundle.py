"""Provide the functions that the configurations of bundles call: set-up, devices, choices and starting weights.

Expressions in a configuration only call functions; every decision is a function with a name and a test.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import monai
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.inferers import SimpleInferer
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler

from nucsam_monai.data import domain_classes
from nucsam_monai.engines.batch import collate_end_to_end, collate_nuclei, collate_points
from nucsam_monai.engines.configuration import (
    NETWORK_KEYS,
    changed_keys,
    check_options,
    current_parser,
    settings_named,
)
from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.inferers.precision import AutocastInferer
from nucsam_monai.networks import (
    UNSAM,
    Prompter,
    Segmentor,
    compile_modules,
    start_from_other_classes,
    start_from_unsam,
    weights_file,
)
from nucsam_monai.networks.sam import load_trained, read_header, start_trunk, with_settings
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import InstanceRule
from nucsam_monai.utils.machine import reuse_freed_memory
from nucsam_monai.utils.paths import project_root
from nucsam_monai.utils.threads import sensible_threads

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from nucsam_monai import Segmenter
    from nucsam_monai.wsi.cluster import MethodSource

Option = TypeVar("Option")

Collate = str | Callable[[Any], Any]

COLLATES: Mapping[str, Callable[[Any], Any]] = {
    "points": collate_points,
    "nuclei": collate_nuclei,
    "end_to_end": collate_end_to_end,
}
"""How items are joined to batches, by the names that configurations use."""

_NOT_OF_THE_NETWORK = ("bundle_root", "input", "output_dir", "domain", "imports", "initialize", "run")


def set_up(seed: int, dataset_dir: str | Path | None = None, *, distributed: bool = False) -> None:
    """Prepare the process for a workflow; the first step of ``initialize``.

    Check the keys of the configuration, seed all random generators, keep freed memory for the next step, and generate
    the demo data if the workflow uses it and it does not exist yet.

    Args:
        seed: seed of all random generators.
        dataset_dir: dataset folder of the workflow.
        distributed: join the process group of ``torchrun``.

    Raises:
        ConfigurationError: an option is not a key of the configuration.
    """
    check_options()
    reuse_freed_memory(blocks_of_all_sizes=True)
    if distributed:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        logging.getLogger().setLevel(logging.WARNING if dist.get_rank() > 0 else logging.INFO)
    monai.utils.set_determinism(seed=seed)
    monai.data.set_track_meta(False)
    if dataset_dir is not None:
        draw_demo(dataset_dir)


def demo_folder() -> str:
    """Return the folder of the demo data, which :func:`set_up` generates."""
    return str(project_root() / "data" / "demo")


def draw_demo(dataset_dir: str | Path) -> None:
    """Generate the demo data if a workflow uses it and it does not exist."""
    if Path(dataset_dir) == Path(demo_folder()):
        from nucsam_monai.data.demo import demo_dataset_dir  # which inference need not load

        demo_dataset_dir()


def header_with(header: Mapping[str, str], *names: str) -> dict[str, str]:
    """Add values of the configuration to the header of a weights file, from which inference reads them."""
    return with_settings(header, settings_named(names))


def limit_threads() -> None:
    """Limit the CPU threads of this process to the idle cores, and log their number.

    Commands that start with MONAI load PyTorch before this package can choose how its threads wait.
    """
    threads, reason = sensible_threads()
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    logger.info("%d threads on the CPU (%s).", torch.get_num_threads(), reason)


def default_device() -> torch.device:
    """Return the GPU number ``LOCAL_RANK`` (default 0), or the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}")


def local_device() -> torch.device:
    """Return the device of this process if ``torchrun`` started several."""
    return (
        torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def is_secondary() -> bool | None:
    """Return True in all processes except the first, and None there, for the argument ``disable`` of a progress bar."""
    return dist.get_rank() > 0 or None


def distributed(
    module: nn.Module, device: torch.device | None = None, *, find_unused_parameters: bool = False
) -> nn.parallel.DistributedDataParallel:
    """Wrap a network, or a part of one, for training in several processes."""
    ids = [device] if device is not None and device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=ids, find_unused_parameters=find_unused_parameters
    )


def run_on_first(engine: Engine) -> None:
    """Run an engine only in the first process."""
    if dist.get_rank() == 0:
        engine.run()


def step_inferer(precision: str) -> AutocastInferer:
    """Return the inferer of a training step: the network in mixed precision."""
    return AutocastInferer(SimpleInferer(), precision)


def training_loader(
    dataset: Dataset,
    sampler: DomainBatchSampler,
    num_workers: int = 0,
    collate_fn: Collate | None = None,
) -> DataLoader:
    """Return the data loader of a training; its random transforms are seeded in every epoch.

    Args:
        dataset: training dataset.
        sampler: sampler of the batches.
        num_workers: number of processes that load images.
        collate_fn: collate function, or a name in :data:`COLLATES`. Default: MONAI's.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        generator=torch.Generator(),
        **_collating(collate_fn),
    )


def single_loader(
    dataset: Dataset,
    num_workers: int = 0,
    sampler: Sampler | None = None,
    collate_fn: Collate | None = None,
) -> DataLoader:
    """Return a data loader with batches of one image, in the order of the dataset.

    Args:
        dataset: dataset of a validation or an evaluation.
        num_workers: number of processes that load images.
        sampler: sampler that distributes the images over several processes.
        collate_fn: collate function, or a name in :data:`COLLATES`. Default: MONAI's.
    """
    return DataLoader(
        dataset, batch_size=1, num_workers=num_workers, sampler=sampler, **_collating(collate_fn)
    )


def _collating(collate_fn: Collate | None) -> dict[str, Any]:
    if collate_fn is None:
        return {}
    if isinstance(collate_fn, str) and collate_fn not in COLLATES:
        raise ConfigurationError(f"collate_fn '{collate_fn}': expected one of {', '.join(COLLATES)}.")
    return {"collate_fn": COLLATES[collate_fn] if isinstance(collate_fn, str) else collate_fn}


def warmup_cosine(optimizer: Optimizer, warmup_epochs: int, epochs: int) -> WarmupCosineSchedule:
    """Return a schedule that warms up from a tenth of the learning rate, then decays to zero along a cosine."""
    return WarmupCosineSchedule(optimizer, warmup_epochs, epochs, warmup_multiplier=0.1)


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that require a gradient."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def pick(choice: Any, default: Option | None = None, **options: Option) -> Option | None:
    """Return the option that is named ``choice``, or ``default`` if none is.

    Example:
        >>> pick("distance", components=1, distance=2)
        2
    """
    return options.get(str(choice), default)


def first_given(*values: Option | None) -> Option | None:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def domains_of(items: Iterable[Mapping[str, Any]]) -> str:
    """Return the domains of items of a dataset, joined by "+"."""
    return "+".join(sorted({item["domain"] for item in items}))


def classes_of_domains(
    network: UNSAM, dataset_dir: str | Path, instances: InstanceRule = "components"
) -> dict[str, list[str]]:
    """Return the class names of every domain for which the network predicts several masks.

    Args:
        network: network with one query per class in domains with classes.
        dataset_dir: the datasets, which name the classes.
        instances: for ``distance`` the second mask is the distance map, and there are no classes.

    Raises:
        ConfigurationError: a domain has more or fewer classes than queries.
    """
    if instances == "distance":
        return {}
    found = {}
    for domain, count in zip(network.domains, network.masks_per_domain, strict=True):
        if count > 1:
            found[domain] = names = domain_classes(dataset_dir, domain)
            if len(names) != count:
                raise ConfigurationError(
                    f"decoder.queries_per_domain: found {count} for domain '{domain}', whose classes in {dataset_dir} "
                    f"are {', '.join(names)}. Give one query per class, or a single one for all nuclei."
                )
    return found


def classes_key(class_names: Sequence[str]) -> str | None:
    """Return the key of the nuclei's classes in an item, None with a single class."""
    return "classes" if len(class_names) > 1 else None


def quality_metric(class_names: Sequence[str]) -> str:
    """Return the panoptic quality that selects weights: the mean over several classes, or of all nuclei."""
    return "val_mpq" if len(class_names) > 1 else "val_pq"


def comparable_classes(trained: Sequence[str], of_dataset: Sequence[str]) -> Sequence[str]:
    """Return the classes of the network if the dataset has the same, else only "nucleus"."""
    return trained if trained == of_dataset else ["nucleus"]


def trained_part(checkpoint: str | None, part: str, *, without: bool = False) -> str | None:
    """Return the weights file of a part of a network; None if the workflow does not need the part."""
    return None if without else weights_file(checkpoint, part)


def trained_model(folder: str, trained: Iterable[Any]) -> str | None:
    """Return the weights file in a folder of a training, None if none of the parts in ``trained`` is trained."""
    return f"{folder}/model.safetensors" if any(trained) else None


def trains_prompt_encoder(finetune: str, sam_checkpoint: str | None) -> bool:
    """Return whether the prompt encoder is trained: if everything is and there are no SAM weights to start from."""
    return finetune == "all" and sam_checkpoint is None


def header_of(checkpoint: Mapping[str, str | None] | str | None) -> Any:
    """Return the header of a weights file, those of several by name, or None where there is no file."""
    if isinstance(checkpoint, Mapping):
        return {name: header_of(path) for name, path in checkpoint.items()}
    return checkpoint and read_header(checkpoint)


def start(
    network: nn.Module,
    checkpoint: str | None,
    header: Mapping[str, str],
    trunk_weights: Any = None,
) -> None:
    """Load the weights that a workflow starts from.

    Args:
        network: network; modified in place.
        checkpoint: trained weights file, or None.
        header: header that the file's header must agree with.
        trunk_weights: pretrained weights of the trunk for a training that starts without a file.
    """
    if checkpoint:
        load_trained(checkpoint, network, header)
    else:
        start_trunk(network, trunk_weights)


def start_classes(path: str | None, prompter: Prompter, header: Mapping[str, str]) -> None:
    """Start from a prompter of other classes if a file is given, see :func:`start_from_other_classes`."""
    if path:
        start_from_other_classes(path, prompter, header)


def start_encoder(path: str | None, segmentor: Segmentor) -> None:
    """Start from the encoder of a UN-SAM training if a file is given, see :func:`start_from_unsam`."""
    if path:
        start_from_unsam(path, segmentor)


def require_recipe(recipe: str | None, name: str) -> None:
    """Check that a configuration was read after the recipe that it belongs to.

    Raises:
        ConfigurationError: the recipe's file was not read before.
    """
    if recipe is None:
        raise ConfigurationError(
            f"--config_file: found settings that need the recipe {name}, but not the recipe. Name {name} between "
            "train.json and the file of these settings."
        )


def compile_if(wanted: bool, modules: Iterable[nn.Module], device: torch.device) -> None:
    """Compile the modules if ``wanted``."""
    if wanted:
        compile_modules(modules, device)


def trained_system(default: str) -> str:
    """Return the system named in the header of the user's ``checkpoint``, or ``default`` if there is no such file.

    The checkpoint of a configuration file is ignored, because it can depend on the system.
    """
    parser = current_parser()
    checkpoint = None if parser is None else parser.get("checkpoint")
    if not isinstance(checkpoint, str) or not Path(checkpoint).is_file():
        return default
    return read_header(checkpoint).get("method", default)


def configured_method(domain: str | None = None) -> "MethodSource":
    """Return the network of the configuration being read, with the changes to its ``inference.json``.

    Args:
        domain: domain of the slides, for methods with domains.

    Raises:
        ConfigurationError: the function was called outside a bundle's configuration.
    """
    from nucsam_monai.wsi.cluster import MethodSource  # needs the extra ``slides``

    parser = _parser_of_bundle(current_parser())
    folder, settings = _changed_settings(parser, (*_NOT_OF_THE_NETWORK, "mpp"))
    checkpoint, device = settings.pop("checkpoint", None), settings.pop("device", None)
    return MethodSource(str(folder), checkpoint, tuple(settings.items()), domain, (), device)


def configured_segmenter(parser: ConfigParser | None) -> "Segmenter":
    """Return the segmenter of a bundle's configuration that is being read, with the network of its workflow.

    Raises:
        ConfigurationError: as for :func:`configured_method`, or a value is not a number, a switch or text.
    """
    from nucsam_monai import Segmenter

    parser = _parser_of_bundle(parser)
    folder, settings = _changed_settings(parser, (*_NOT_OF_THE_NETWORK, "device"))
    checkpoint, device = settings.pop("checkpoint", None), str(parser.get_parsed_content("device"))
    networks = {key: parser.get_parsed_content(key).eval() for key in Segmenter.NETWORK_KEYS}
    return Segmenter(folder, checkpoint, device, settings, networks)


def _parser_of_bundle(parser: ConfigParser | None) -> ConfigParser:
    if parser is None or "bundle_root" not in parser:
        raise ConfigurationError(
            "bundle_root: not found. Put the bundle's inference.json first in --config_file."
        )
    return parser


def _changed_settings(parser: ConfigParser, without: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Return a bundle's folder and what a configuration changes in its ``inference.json``."""
    folder = Path(parser.get_parsed_content("bundle_root"))
    changed = changed_keys(parser, folder / "configs" / "inference.json")
    return folder, {key: parser.get_parsed_content(key) for key in changed if key not in without}
