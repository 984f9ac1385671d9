"""What every configuration of every bundle builds, in a form that two versions of a configuration can be compared in.

``python -m tests.bundles.config_snapshot`` writes the snapshot that ``test_configs_equal.py`` compares with.
"""

import functools
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import monai
import numpy as np
import torch
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from nucsam_monai.handlers import BestWeightsSaver, TrackedRun
from nucsam_monai.networks.sam import SAM_VARIANTS, save_trained
from tests.bundles.baselines_runs import BASELINES
from tests.bundles.cfrsam_runs import CFRSAM, WIDE
from tests.bundles.compact_sam_runs import COMPACT_SAM
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG, write_typed_dataset
from tests.bundles.runs import REPOSITORY, BundleRuns, write_datasets
from tests.bundles.sac_runs import SAC
from tests.bundles.unsam_runs import UNSAM
from tests.networks.conftest import MICRO, MICRO_TRUNK

SNAPSHOT = Path(__file__).with_name("configs_before.json")
TINY_RECIPE = {"image_size": 32, "sam_variant": "micro", "backbone": "compact", "split_protocol": None}
HYBRID = {"sam_variant": "hybrid", "image_size": 64, "trunk_weights": None}
CASES: dict[str, tuple[BundleRuns, tuple[str, ...], dict[str, Any]]] = {
    "unsam": (UNSAM, (), {}),
    "unsam gt_points": (UNSAM, (), {"prompt": "gt_points"}),
    "unsam compact": (UNSAM, ("compact",), HYBRID),
    "unsam paper": (UNSAM, ("paper",), {"domains": ["dark", "bright"]}),
    "unsam several": (UNSAM, ("multi_gpu_train",), {}),
    "unsam evaluate": (UNSAM, ("evaluate",), {}),
    "sac": (SAC, (), {}),
    "sac distance": (SAC, (), {"instances": "distance", "n_expert": 2}),
    "sac paper": (SAC, ("paper",), {}),
    "sac several": (SAC, ("multi_gpu_train",), {}),
    "sac evaluate": (SAC, ("evaluate",), {}),
    "sac zero_shot": (SAC, ("evaluate", "zero_shot"), {}),
    "sac automatic": (SAC, ("evaluate", "automatic"), {"sam_variant": "micro", "image_size": 32}),
    "baselines": (BASELINES, (), {}),
    "baselines hovernet": (
        BASELINES,
        (),
        {"baseline": "hovernet", "baseline_size": "standard", "image_size": 256},
    ),
    "baselines compact": (
        BASELINES,
        ("compact",),
        {"baseline": "pretrained_unet", "image_size": 64, "trunk_weights": None},
    ),
    "baselines sequential": (BASELINES, (), {"schedule": "sequential"}),
    "baselines several": (BASELINES, ("multi_gpu_train",), {}),
    "baselines evaluate": (BASELINES, ("evaluate",), {}),
    "compact_sam": (COMPACT_SAM, (), {}),
    "compact_sam evaluate": (COMPACT_SAM, ("evaluate",), {}),
    "sam_eunet3p": (EUNET3P, (), {}),
    "sam_eunet3p guided": (EUNET3P, (), {"fusion": "xgfb"}),
    "sam_eunet3p paper": (EUNET3P, ("paper",), {}),
    "sam_eunet3p several": (EUNET3P, ("multi_gpu_train",), {}),
    "sam_eunet3p evaluate": (EUNET3P, ("evaluate",), {}),
    "promptnucseg": (PROMPTNUCSEG, (), {}),
    "promptnucseg classes": (PROMPTNUCSEG, (), {"classifier": "segmentor"}),
    "promptnucseg shared": (PROMPTNUCSEG, ("shared_encoder",), {}),
    "promptnucseg compact": (
        PROMPTNUCSEG,
        ("shared_encoder", "compact"),
        {"sam_variant": "hybrid", "image_size": 128},
    ),
    "promptnucseg zoom": (PROMPTNUCSEG, ("random_zoom",), {}),
    "promptnucseg pq": (PROMPTNUCSEG, ("select_by_pq",), {}),
    "promptnucseg cpm17": (PROMPTNUCSEG, ("paper", "paper_cpm17"), TINY_RECIPE),
    "promptnucseg kumar": (PROMPTNUCSEG, ("paper", "paper_kumar"), TINY_RECIPE),
    "promptnucseg pannuke": (PROMPTNUCSEG, ("paper", "paper_pannuke"), TINY_RECIPE),
    "promptnucseg several": (PROMPTNUCSEG, ("multi_gpu_train",), {}),
    "promptnucseg evaluate": (PROMPTNUCSEG, ("evaluate",), {}),
    "promptnucseg oracle": (PROMPTNUCSEG, ("evaluate",), {"oracle_prompts": True}),
    "cfrsam": (CFRSAM, (), {}),
    "cfrsam boxes": (CFRSAM, (), {"prompt": "box", "boundary_target": "sobel_semantic"}),
    "cfrsam cpm17": (
        CFRSAM,
        ("paper", "paper_cpm17"),
        {**TINY_RECIPE, "sam_variant": WIDE.name, "image_size": 64},
    ),
    "cfrsam monuseg": (
        CFRSAM,
        ("paper", "paper_monuseg"),
        {**TINY_RECIPE, "sam_variant": WIDE.name, "image_size": 64},
    ),
    "cfrsam pannuke": (
        CFRSAM,
        ("paper", "paper_pannuke"),
        {**TINY_RECIPE, "sam_variant": WIDE.name, "image_size": 64},
    ),
    "cfrsam several": (CFRSAM, ("multi_gpu_train",), {}),
    "cfrsam evaluate": (CFRSAM, ("evaluate",), {}),
    "unsam inference": (UNSAM, ("inference",), {}),
    "sac inference": (SAC, ("inference",), {}),
    "baselines inference": (BASELINES, ("inference",), {}),
    "sam_eunet3p inference": (EUNET3P, ("inference",), {}),
    "promptnucseg inference": (PROMPTNUCSEG, ("inference",), {}),
    "cfrsam inference": (CFRSAM, ("inference",), {}),
}
_TWO_STAGES = ("promptnucseg", "cfrsam")
_ENGINES = (
    "train::trainer",
    "validate::evaluator",
    "prompter_stage::trainer",
    "prompter_stage::validation::evaluator",
    "joint::evaluator",
    "evaluator",
)
_DATA = ("train::search::dataloader",)
_LEFT_OUT = {
    "R",
    "logger",
    "_logger",
    "_store",
    "params",
    "pbar",
    "pbar_cls",
    "_new_optimizer",
    "_new_lr_scheduler",
}


def workflow_of(
    case: str, folder: Path, data: Mapping[str, str], weights: Mapping[str, str]
) -> ConfigWorkflow:
    """Parse and initialise one case on tiny data."""
    runs, overlays, changed = CASES[case]
    settings = {**runs.tiny, **changed, "dataset_dir": data[runs.name], "output_dir": str(folder / "out")}
    if "paper" in "".join(overlays):
        for key in (
            "levels",
            "batch_size",
            "epochs",
            "val_interval",
            "samples_per_epoch",
            "max_nuclei",
            "prompter_crop_px",
            "filters",
        ):
            settings.pop(key, None)
        settings.pop("point_radius_px", None)
        settings.pop("train_prompts", None)
    if (
        "automatic" not in overlays
        and "zero_shot" not in overlays
        and {"evaluate", "inference"} & set(overlays)
    ):
        settings["checkpoint"] = weights[runs.name]
    if overlays == ("inference",):
        config = json.loads((runs.configs / "inference.json").read_text())
        known = {key: value for key, value in settings.items() if key in config}
        known.pop("dataset_dir")
        return runs.bundle(base="inference", **known, input=data[runs.name])
    return runs.bundle(*overlays, **settings)


def weights_of(workflow: ConfigWorkflow, folder: Path) -> str:
    """Save untrained weights where an evaluation looks for them; return its ``checkpoint``."""
    saved: list[Path] = []
    for key in ("best_weights", "prompter_stage::best_weights"):
        if key.split("::")[0] not in workflow.parser.get():
            continue
        saver = workflow.parser.get_parsed_content(key)
        assert isinstance(saver, BestWeightsSaver)
        saved.append(folder / saver.path.name)
        save_trained(saved[-1], saver.network, {**saver.header, "epoch": "1"})
    return str(folder if len(saved) > 1 else saved[0])


def described(workflow: ConfigWorkflow, folder: Path) -> dict[str, Any]:
    """Describe the engines of a workflow with all that they use."""
    parser = workflow.parser
    found: dict[str, Any] = {}
    keys = ("validate::evaluator",) if "evaluating" in parser else (*_ENGINES, *_DATA)
    for key in keys:
        try:
            raw = parser[key]
        except (KeyError, ValueError):
            continue
        if raw is not None:
            found[key] = parser.get_parsed_content(key)
    describe = _Describer(folder)
    return {
        key: describe.engine(one) if isinstance(one, Engine) else describe(one) for key, one in found.items()
    }


class _Describer:
    """Turn objects into JSON: classes with their attributes, tensors and networks as digests."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.open: list[int] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (bool, int, type(None))):
            return value
        if isinstance(value, float):
            return repr(round(value, 12))
        if isinstance(value, (str, Path)):
            return str(value).replace(self.folder, "<tmp>").replace(str(REPOSITORY), "<repository>")
        if isinstance(value, (torch.device, torch.dtype, np.dtype)) or (
            type(value).__module__ == "builtins" and isinstance(value, type)
        ):
            return str(value)
        if isinstance(value, np.generic):
            return self(value.item())
        if isinstance(value, torch.Tensor):
            return f"tensor {_digest(value.detach().cpu().double().numpy().tobytes())} {tuple(value.shape)}"
        if isinstance(value, np.ndarray):
            return f"array {_digest(np.ascontiguousarray(value).tobytes())} {value.shape}"
        if isinstance(value, type):
            return value.__name__
        if isinstance(value, functools.partial):
            return {
                "class": "partial",
                "func": self(value.func),
                "args": self(value.args),
                **self(value.keywords),
            }
        if isinstance(value, (FunctionType, MethodType)) or (
            not hasattr(value, "__dict__") and callable(value)
        ):
            return getattr(value, "__qualname__", type(value).__name__)
        if id(value) in self.open:
            return f"<{type(value).__name__}>"
        self.open.append(id(value))
        try:
            return self.compound(value)
        finally:
            self.open.pop()

    def compound(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self(item) for key, item in value.items()}
        if isinstance(value, Engine):
            return f"<{type(value).__name__}>"
        if isinstance(value, Compose):
            return [self(step) for step in value.flatten().transforms]
        if isinstance(value, (list, tuple, set, frozenset)):
            ordered = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            items = [self(item) for item in ordered]
            if items and isinstance(items[0], dict) and "image" in items[0] and "id" in items[0]:
                return f"{len(items)} items {_digest(json.dumps(items).encode())}"
            return items
        if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
            state = {name: self(tensor) for name, tensor in value.state_dict().items()}
            learning = [name for name, one in value.named_parameters() if one.requires_grad]
            text = json.dumps([state, learning, repr(value)])
            text = re.sub(r"(module\.)", "", text)
            return (
                f"{type(value).__name__} {len(state)} tensors {len(learning)} learn {_digest(text.encode())}"
            )
        if isinstance(value, Optimizer):
            groups = [
                {key: self(item) for key, item in group.items() if key != "params"}
                | {"params": len(group["params"])}
                for group in value.param_groups
            ]
            return {"class": type(value).__name__, "groups": groups}
        if isinstance(value, TrackedRun):
            return {
                "class": "TrackedRun",
                "experiment": value.experiment,
                "workflow": value.workflow,
                "tags": self(value.tags),
                "weights": self(value.weights),
            }
        if isinstance(value, DataLoader):
            kept = (
                "dataset",
                "batch_size",
                "num_workers",
                "batch_sampler",
                "sampler",
                "collate_fn",
                "generator",
            )
            return {"class": "DataLoader", **{key: self(getattr(value, key)) for key in kept}}
        if isinstance(value, Dataset):
            return {
                "class": type(value).__name__,
                "data": self(list(value.data)),
                "transform": self(value.transform),
            }
        if isinstance(value, torch.Generator):
            return "Generator"
        attributes = {**getattr(value, "__dict__", {})}
        if type(value).__name__ == "GradientClipping":
            attributes["network"] = getattr(value.network, "module", value.network)
        if type(value).__name__ == "MLflowTracker":
            optional = ("overlays", "per_class.csv", "per_tissue.csv")  # uploaded where they exist
            attributes["artifacts"] = [one for one in value.artifacts if not str(one).endswith(optional)]
        shown = {key: self(item) for key, item in sorted(attributes.items()) if key not in _LEFT_OUT}
        return {"class": type(value).__name__, **shown}

    def engine(self, engine: Engine) -> dict[str, Any]:
        """Describe an engine: its parts, and the handlers of each event in their order."""
        own = {
            key: self(item)
            for key, item in sorted(engine.__dict__.items())
            if key
            in (
                "network",
                "optimizer",
                "loss_function",
                "inferer",
                "prepare_batch",
                "amp",
                "data_loader",
                "postprocessing",
            )
        }
        events = {}
        for event, handlers in engine._event_handlers.items():
            named = [_handler(one) for one, *_ in handlers]
            order = [name for name in named if not name.startswith(("ProgressBar", "_OutputHandler"))]
            if order:
                events[str(getattr(event, "value", event))] = order
        handlers = {}
        for entries in engine._event_handlers.values():
            for one, args, kwargs in entries:
                for owner in (_owner(one), *args, *kwargs.values()):
                    if (
                        owner is not None
                        and not isinstance(owner, (Engine, str))
                        and hasattr(owner, "__dict__")
                    ):
                        handlers[id(owner)] = self(owner)
        unique = sorted({json.dumps(handler) for handler in handlers.values()})
        return {
            "class": type(engine).__name__,
            "max_epochs": engine.state.max_epochs,
            **own,
            "events": dict(sorted(events.items())),
            "handlers": [json.loads(handler) for handler in unique],
        }


def _unwrapped(handler: Any) -> Any:
    parent = getattr(handler, "_parent", None)
    return handler if parent is None else parent()


def _owner(handler: Any) -> Any:
    return getattr(_unwrapped(handler), "__self__", None)


def _handler(handler: Any) -> str:
    handler = _unwrapped(handler)
    owner = getattr(handler, "__self__", None)
    name = getattr(handler, "__name__", type(handler).__name__)
    return name if owner is None else f"{type(owner).__name__}.{name}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def interned(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Replace every described object by its number in a table, so that what cases share stands once."""
    table: list[Any] = []
    numbers: dict[str, int] = {}

    def intern(value: Any) -> Any:
        if isinstance(value, list):
            return [intern(item) for item in value]
        if not isinstance(value, dict):
            return value
        value = {key: intern(item) for key, item in value.items()}
        if "class" not in value:
            return value
        text = json.dumps(value)
        if text not in numbers:
            numbers[text] = len(table)
            table.append(value)
        return f"&{numbers[text]}"

    cases = {name: intern(case) for name, case in snapshot.items()}
    return {"objects": table, "cases": cases}


def expanded(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`interned`."""
    table = snapshot["objects"]

    def expand(value: Any) -> Any:
        if isinstance(value, list):
            return [expand(item) for item in value]
        if isinstance(value, dict):
            return {key: expand(item) for key, item in value.items()}
        if isinstance(value, str) and re.fullmatch(r"&\d+", value):
            return expand(table[int(value[1:])])
        return value

    return {name: expand(case) for name, case in snapshot["cases"].items()}


@contextmanager
def micro_networks() -> Iterator[None]:
    """Make the micro variants of SAM known."""
    for variant in (MICRO, MICRO_TRUNK, WIDE):
        SAM_VARIANTS[variant.name] = variant
    yield


def describe_cases(names: list[str], folder: Path) -> dict[str, Any]:
    """Describe the named cases, and whatever they need before."""
    plain, typed = (
        str(write_datasets(folder / "data" / "plain")),
        str(write_typed_dataset(folder / "data" / "typed")),
    )
    data = {runs.name: typed if runs.name in _TWO_STAGES else plain for runs, _, _ in CASES.values()}
    weights: dict[str, str] = {}
    found = {}
    for name in CASES:
        bundle = name.split()[0]
        needed = any(other.split()[0] == bundle for other in names)
        if not (name in names or (name == bundle and needed)):
            continue
        workflow = workflow_of(name, folder, data, weights)
        found[name] = described(workflow, folder)
        if name == bundle:
            (folder / "weights" / bundle).mkdir(parents=True, exist_ok=True)
            weights[bundle] = weights_of(workflow, folder / "weights" / bundle)
        workflow.finalize()
        monai.utils.set_determinism(None)
        monai.data.set_track_meta(True)
    return {name: json.loads(json.dumps(found[name])) for name in names}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, micro_networks():
        wanted = sys.argv[1:] or list(CASES)
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29517"
        )
        snapshot = interned(describe_cases(wanted, Path(temporary)))
        SNAPSHOT.write_text(json.dumps(snapshot, separators=(",", ":")) + "\n")
