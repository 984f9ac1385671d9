"""The handler that writes an engine's epochs to an MLflow run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.handlers import MLFlowHandler

from nucsam_monai.handlers.mlflow_run import TrackedRun, status_after
from nucsam_monai.handlers.run_facts import device_name
from nucsam_monai.handlers.tracking_store import resolve_tracking_uri

_SPLIT_OF_CONTEXT = {"training": "training", "validation": "validation", "evaluation": "test"}


class MLflowTracker:
    """Write one engine's epochs to a :class:`TrackedRun` and end the run with the engine.

    At a trainer it records, with the epoch as the step, ``train_loss`` (mean over the iterations of the
    epoch, of this process), every part of the loss (see :func:`losses_of`), and ``lr_group_<i>``, the
    learning rate that the epoch began with. At every engine it records each scalar of
    ``engine.state.metrics``; a validator that ``ValidationHandler`` runs has the trainer's epoch as its own.

    **Who ends the run.** The engine with ``owner=True``, else the engine that began it: an evaluator alone
    ends its own run and a validator inside training doesn't. An exception in any tracked engine ends it as
    FAILED, an interrupt from the keyboard as KILLED.

    **Order of handlers.** Ignite calls the handlers of an exception in order and stops at the first that
    raises, as ``StatsHandler`` does. The tracker therefore moves to the front when the engine starts. It ends
    the run behind all other handlers, when savers have written their files. So its place in a list of
    handlers doesn't matter; it must not be attached to an engine that is already running.

    **MONAI's own** ``--tracking mlflow``. A stock ``MLFlowHandler`` of the same engine, store and experiment
    gets this run to write to, and the tracker leaves losses, learning rates and metrics to it; with another
    experiment each writes to its own.

    Args:
        run: the run, the same object for all engines of a job.
        owner: whether the end of this engine is the end of the run.
        artifacts: files and folders to upload when the run ends: executed configurations, ``metadata.json``,
            tables per image, overlays. What doesn't exist by then is passed over.
        dataset_dir: dataset folder that is recorded as an input of the run, or a folder of several.
        split: the part of it that the engine uses; by default ``training`` for a trainer, ``validation`` for
            a validator, ``test`` for an evaluator that runs alone.
        split_protocol: the named split in use, as in :func:`nucsam_monai.data.load_items`.

    Example:
        In a bundle configuration::

            {"_target_": "nucsam_monai.handlers.MLflowTracker", "run": "@tracked_run", "owner": true}
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        owner: bool = False,
        artifacts: Sequence[str | Path] = (),
        dataset_dir: str | Path | None = None,
        split: str | None = None,
        split_protocol: str | Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.owner = owner
        self.artifacts = list(artifacts)
        self.dataset_dir = dataset_dir
        self.split = split
        self.split_protocol = split_protocol
        self._ends_run = False
        self._points_are_stock = False
        self._recorded_run_id: str | None = None
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._loss_counts: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Register the tracker at a trainer, validator or evaluator; nothing is written before it starts."""
        if self.owner:
            self.run.claim()
        _add_once(engine, Events.STARTED, self.start)
        _add_once(engine, Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Begin or join the run and record what is known before the first epoch."""
        self._ends_run = self.owner or not (self.run.is_open or self.run.has_owner)
        self._loss_sums, self._loss_counts = {}, {}
        self.run.open()
        if not self.run.is_open:
            return
        handed_over = [self._hand_over(stock) for stock in _stock_handlers(engine)]
        self._points_are_stock = any(handed_over)
        _move_to_front(engine, Events.EXCEPTION_RAISED, self.fail)
        _add_once(engine, Events.EPOCH_COMPLETED, self.finish_epoch)
        _add_once(engine, Events.COMPLETED, self.finish)
        if isinstance(engine, Trainer):
            _add_once(engine, Events.EPOCH_STARTED, self.log_learning_rates)
            _add_once(engine, Events.ITERATION_COMPLETED, self.add_losses)
        if self._recorded_run_id != self.run.run_id:
            self._recorded_run_id = self.run.run_id
            self._record_facts(engine)

    def log_learning_rates(self, engine: Engine) -> None:
        """Record the learning rate of every parameter group that the epoch begins with."""
        optimizer = getattr(engine, "optimizer", None)
        if self._points_are_stock or not isinstance(optimizer, torch.optim.Optimizer):
            return
        rates = {f"lr_group_{i}": group["lr"] for i, group in enumerate(optimizer.param_groups)}
        self.run.log_metrics(rates, step=engine.state.epoch)

    def add_losses(self, engine: Engine) -> None:
        """Add the losses of one iteration to the epoch's sums, on their device, so without waiting for it."""
        for name, value in losses_of(engine.state.output).items():
            self._loss_sums[name] = self._loss_sums[name] + value if name in self._loss_sums else value
            self._loss_counts[name] = self._loss_counts.get(name, 0) + 1

    def finish_epoch(self, engine: Engine) -> None:
        """Record the epoch's mean losses and all scalar metrics of the engine at its epoch."""
        means = {name: float(total) / self._loss_counts[name] for name, total in self._loss_sums.items()}
        self._loss_sums, self._loss_counts = {}, {}
        if not self._points_are_stock:
            self.run.log_metrics({**means, **engine.state.metrics}, step=engine.state.epoch)

    def finish(self, _engine: Engine) -> None:
        """End the run as FINISHED where this engine's end is its end."""
        if self._ends_run:
            self.run.close()

    def fail(self, _engine: Engine, error: BaseException) -> NoReturn:
        """End the run as FAILED or KILLED and pass the exception on."""
        self.run.log_tags({"error": f"{type(error).__name__}: {error}"})
        self.run.close(status_after(error))
        raise error

    def _record_facts(self, engine: Engine) -> None:
        """Record device, dataset and artifacts once per run."""
        self.run.add_artifacts(self.artifacts)
        device = getattr(engine.state, "device", None)
        if device is not None:
            self.run.log_tags({"device": device_name(device)})
        if self.dataset_dir is not None:
            alone = "evaluation" if self._ends_run else "validation"
            context = "training" if isinstance(engine, Trainer) else alone
            split = self.split or _SPLIT_OF_CONTEXT[context]
            directory = Path(self.dataset_dir)
            several = sorted(file.parent for file in directory.glob("*/dataset.json"))
            for folder in several or [directory]:
                self.run.log_dataset(folder, split=split, context=context, protocol=self.split_protocol)

    def _hand_over(self, stock: MLFlowHandler) -> bool:
        """Make a stock handler of the same experiment write to our run; tell whether it does."""
        same_store = resolve_tracking_uri(stock.client.tracking_uri) == self.run.uri
        if not same_store or stock.experiment_name != self.run.experiment:
            return False
        if stock.cur_run is None or stock.cur_run.info.run_id == self._recorded_run_id:
            # Left to itself it would continue an unfinished run of the experiment, whoever's that is.
            stock.cur_run = self.run.client.get_run(self.run.run_id)
        return stock.cur_run.info.run_id == self.run.run_id


def losses_of(output: Any) -> dict[str, torch.Tensor]:
    """Return the losses in a trainer's output by the names they are recorded under.

    ``loss`` becomes ``train_loss``, and an entry ``loss_<part>`` becomes ``train_loss_<part>``. Without
    decollation the parts may also be a dictionary under ``loss`` or ``losses``; decollation keeps only
    entries of one level.

    Args:
        output: a dictionary, or the list of dictionaries that MONAI's decollation makes of it, where every
            item repeats the losses of the batch.

    Example:
        >>> losses_of([{"loss": torch.tensor(2.0), "loss_dice": torch.tensor(0.5)}])
        {'train_loss': tensor(2.), 'train_loss_dice': tensor(0.5000)}
    """
    first = output[0] if isinstance(output, Sequence) and output else output
    if not isinstance(first, Mapping):
        return {}
    named: dict[str, Any] = {}
    for key, value in first.items():
        name = str(key)
        if name in ("loss", "losses") and isinstance(value, Mapping):
            named |= {f"train_loss_{part}": number for part, number in value.items()}
        elif name == "loss" or name.startswith("loss_"):
            named[f"train_{name}"] = value
    losses = {name: _detached(value) for name, value in named.items()}
    return {name: loss for name, loss in losses.items() if loss is not None}


def _detached(value: Any) -> torch.Tensor | None:
    """Return a scalar as a tensor outside the graph, ``None`` for anything else."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.detach().reshape(()).to(torch.float32)
    if isinstance(value, (int, float)):
        return torch.tensor(float(value))
    return None


def _add_once(engine: Engine, event: Any, handler: Callable[..., None]) -> None:
    if not engine.has_event_handler(handler, event):
        engine.add_event_handler(event, handler)


# Ignite has no public way to list or to order an engine's handlers: only these two functions read its table.


def _stock_handlers(engine: Engine) -> Iterator[MLFlowHandler]:
    """Yield MONAI's own MLflow handlers that are attached to the engine."""
    for handler, *_ in engine._event_handlers[Events.STARTED]:
        attached = getattr(handler, "__self__", None)
        if isinstance(attached, MLFlowHandler):
            yield attached


def _move_to_front(engine: Engine, event: Any, handler: Callable[..., Any]) -> None:
    """Make ``handler`` the first that the engine calls at ``event``."""
    engine._event_handlers[event].sort(key=lambda entry: entry[0] != handler)
