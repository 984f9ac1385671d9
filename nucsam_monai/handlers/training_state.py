"""Save and resume the state of a training."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nucsam_monai.engines.configuration import changed_settings
from nucsam_monai.handlers.mlflow import TrackedRun
from nucsam_monai.networks.sam.weights import (
    open_safetensors,
    read_safetensors,
    require_same_tensors,
    write_safetensors,
)
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.exit import unstopped

logger = logging.getLogger(__name__)

_FORMAT = "nucsam_monai.training_state.1"
_HINT = "Resume with the options of the interrupted training, or delete the file to start from the beginning."

MAY_CHANGE = (
    "epochs",
    "prompter_epochs",
    "segmentor_epochs",
    "max_epochs",
    "lr",
    "prompter_lr",
    "segmentor_lr",
    "lr_factors",
    "val_interval",
    "early_stopping_patience",
    "num_workers",
    "activation_checkpointing",
)
"""Settings that a resumed training may change: how long, at which rate, and what does not decide its weights."""

NOT_COMPARED = (
    "bundle_root",
    "output_dir",
    "resume",
    "hide_progress",
    "device",
    "compile",
    "experiment_name",
    "embedding_cache",
    "embedding_cache_gb",
    "embedding_cache_memory_gb",
)
"""Settings of the machine, which a resumed training may change without a word."""


class TrainingState:
    """Save everything needed to resume a training after every epoch, and restore it.

    The file holds the trained tensors of the network and the states of optimizer, learning rate and
    whatever else has ``state_dict`` and ``load_state_dict``. An interrupted epoch is repeated.
    Together with :class:`~nucsam_monai.handlers.DomainScheduleHandler`, which seeds every epoch by its
    number, the resumed training gives the same weights as an uninterrupted one (bit for bit on a CPU).

    The length of the training and its learning rate may change when it is resumed: the rate of every epoch is that
    of an uninterrupted training with the present settings. See :data:`MAY_CHANGE`; any other change is refused.

    Args:
        path: the ``.safetensors`` file.
        network: network; its trainable parameters and all its buffers are stored.
        parts: named objects with ``state_dict`` and ``load_state_dict``; their states hold tensors, numbers,
            texts, mappings and lists of these.
        resume: continue the training in ``path``; without that file it starts from the beginning.
        settings: returns the settings that decide the weights, when the engine has started.
        run: the tracked run, which a resumed training continues.

    Raises:
        CheckpointError: when the engine starts, if the file is damaged or of another training.
        ConfigurationError: then, if a setting has changed that may not.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        parts: Mapping[str, Any],
        resume: bool = False,
        *,
        settings: Callable[[], Mapping[str, str]] = dict,
        run: TrackedRun | None = None,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.parts = dict(parts)
        self.resume = resume
        self.settings = settings
        self.run = run
        self.epoch: int | None = None
        self._run_id = ""
        self._settings: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, as the last of its handlers so that the epoch is over when it saves."""
        if not engine.has_event_handler(self.take_up, Events.STARTED):
            engine.add_event_handler(Events.STARTED, self.take_up)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the state after an epoch, completely or not at all."""
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        tensors: dict[str, Tensor] = {}
        document = {
            name: _take_tensors(part.state_dict(), f"parts/{name}", tensors)
            for name, part in self.parts.items()
        }
        for name, tensor in self._network_tensors().items():
            tensors[f"network/{name}"] = tensor
        metadata = {
            "format": _FORMAT,
            "epoch": str(engine.state.epoch),
            "parts": json.dumps(document),
            "settings": json.dumps(self._settings),
            "run_id": (self.run and self.run.run_id) or self._run_id,
        }
        with unstopped():
            write_safetensors(self.path, tensors, metadata)
        self.epoch = engine.state.epoch

    def take_up(self, engine: Engine) -> None:
        """Load the state into network and parts, and continue after the last completed epoch."""
        self._settings = dict(self.settings())
        if not self.resume:
            return
        if not self.path.is_file():
            logger.info("%s: nothing to resume, the training starts from the beginning.", self.path)
            return
        epoch, header, document, tensors = self._read()
        changed = self._changed(json.loads(header.get("settings", "{}")))
        for name, part in self.parts.items():
            try:
                _load(part, _give_tensors(document[name], tensors))
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{self.path}: the state of '{name}' does not fit ({error}). {_HINT}"
                ) from error
        with torch.no_grad():
            for name, tensor in self._network_tensors().items():
                tensor.copy_(tensors[f"network/{name}"])
        engine.state.epoch = self.epoch = epoch
        engine.state.iteration = epoch * engine.state.epoch_length
        self._run_id = header.get("run_id", "")
        if self.run is not None and self._run_id:
            self.run.take_up(self._run_id, epoch, {name: new for name, (_, new) in changed.items()})
        others = "".join(f", {name} {new} instead of {old}" for name, (old, new) in changed.items())
        logger.info("%s: resumed after epoch %d%s.", self.path, epoch, others)
        if engine.state.max_epochs is not None and epoch >= engine.state.max_epochs:
            logger.info("all %d epochs are trained; more need a larger --epochs.", engine.state.max_epochs)

    def _changed(self, old: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Return the settings that have changed, all of which may.

        Raises:
            ConfigurationError: others have changed.
        """
        new = self._settings
        changed = changed_settings(old, new) if old else {}
        permitted = set(MAY_CHANGE)
        if new.get("schedule") == "sequential":
            permitted.discard("epochs")  # the epochs of a domain say which domain an epoch trains
        refused = [name for name in changed if not permitted & set(name.split("#"))]
        if refused:
            others = ", ".join(
                f"{name} (was {changed[name][0]}, is {changed[name][1]})" for name in refused[:5]
            )
            raise ConfigurationError(
                f"{self.path}: a resumed training can't change {others}. Give the values of the interrupted training, "
                "or train without --resume. What may change: " + ", ".join(sorted(permitted)) + "."
            )
        return changed

    def _read(self) -> tuple[int, dict[str, str], dict[str, Any], dict[str, Tensor]]:
        """Return the last completed epoch, the header, the states of the parts and all tensors, checked."""
        with open_safetensors(self.path) as file:
            header = file.metadata() or {}
        if header.get("format") != _FORMAT:
            raise CheckpointError(
                f"{self.path}: its format is '{header.get('format', 'not named')}', expected '{_FORMAT}'. "
                "Delete the file to start from the beginning."
            )
        try:
            epoch, document = int(header["epoch"]), dict(json.loads(header["parts"]))
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: damaged training state ({error!r}). Delete the file to start from the beginning."
            ) from error
        if set(document) != set(self.parts):
            raise CheckpointError(
                f"{self.path}: holds the states of {sorted(document)}, expected {sorted(self.parts)}. {_HINT}"
            )
        tensors = read_safetensors(self.path)
        require_same_tensors(
            {f"network/{name}": tensor.shape for name, tensor in self._network_tensors().items()},
            {name: tensor.shape for name, tensor in tensors.items() if name.startswith("network/")},
            str(self.path),
            hint=_HINT,
        )
        return epoch, header, document, tensors

    def _network_tensors(self) -> dict[str, Tensor]:
        trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.network.named_buffers())}


def _load(part: Any, state: Mapping[str, Any]) -> None:
    """Load the state of a part; the learning rate follows the present settings."""
    if isinstance(part, LRScheduler):
        with warnings.catch_warnings():  # the optimizer has stepped, in the interrupted training
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(part.last_epoch, int(state["last_epoch"])):
                part.step()
    elif isinstance(part, Optimizer):
        rates = [
            {str(key): group[key] for key in ("lr", "initial_lr") if key in group}
            for group in part.param_groups
        ]
        part.load_state_dict(dict(state))
        for group, rate in zip(part.param_groups, rates, strict=True):
            group.update(rate)
    else:
        part.load_state_dict(state)


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a nested state into ``tensors``; what stays can be written as JSON."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        pairs = [[key, _take_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        return {"__mapping__": pairs}  # pairs, because optimizers number their parameters with integers
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    return value


def _give_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`_take_tensors`."""
    if isinstance(value, list):
        return [_give_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__float__" in value:
        return float(value["__float__"])
    return {key: _give_tensors(item, tensors) for key, item in value["__mapping__"]}
