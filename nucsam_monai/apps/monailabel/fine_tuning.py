"""Training of a served bundle on annotations, by the bundle's own ``train.json``."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from nucsam_monai.apps.monailabel.annotated_dataset import AnnotatedImage, write_annotated_dataset
from nucsam_monai.apps.monailabel.image_source import ImageOpener
from nucsam_monai.apps.monailabel.options import Choice, Number, Option, Switch
from nucsam_monai.apps.monailabel.runs import BundleRuns, write_run_facts
from nucsam_monai.segmenter import Scalar, Segmenter
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import sha256_of_file

logger = logging.getLogger(__name__)

FROM_SCRATCH = "scratch"


@dataclass(frozen=True)
class FineTuning:
    """What a request for training asks for.

    Attributes:
        epochs: passes of the training, as the bundle counts them.
        learning_rate: of the optimiser; None leaves the bundle's.
        validation_share: share of the images that selects the weights.
        start: name of the weights to go on from, or :data:`FROM_SCRATCH`.
        domain: of the images, for methods with domains.
        serve: whether the server answers with the new weights from then on.
    """

    epochs: int
    learning_rate: float | None
    validation_share: float
    start: str
    domain: str | None
    serve: bool


def training_options(runs: BundleRuns, domains: Sequence[str], devices: Sequence[str]) -> tuple[Option, ...]:
    """Return what a request for training may set; ``lr`` 0 leaves the bundle's learning rate."""
    options: list[Option] = [
        Choice("device", tuple(devices)),
        Number("max_epochs", 10, 1, 10000, whole=True),
        Number("lr", 0, 0, 1),
        Number("val_split", 0.2, 0.01, 0.9),
        Choice("start", (*runs.choices(), FROM_SCRATCH)),
        Switch("serve", default=False),
    ]
    return (*options, Choice("domain", tuple(domains))) if domains else tuple(options)


def fine_tune(
    bundle: Segmenter,
    runs: BundleRuns,
    images: Sequence[AnnotatedImage],
    opener: ImageOpener,
    wanted: FineTuning,
    *,
    tracking_uri: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Train and keep the best weights in a new run.

    Args:
        bundle: with the weights to start from, which tell classes and domains.
        runs: the bundle's runs.
        images: the annotations.
        opener: reads the images.
        wanted: the request.
        tracking_uri: where MLflow writes; None takes the bundle's default.
        now: names the run.

    Returns:
        What ``run.json`` holds: the name of the run, its images and the weights it started from.

    Raises:
        DatasetError: the annotations cannot be used.
        ConfigurationError: the bundle cannot be trained.
    """
    name = runs.new_name(now or datetime.now())
    partial = runs.folder / f".{name}.partial"
    partial.mkdir(parents=True)
    try:
        facts = {"run": name, **_train_in(partial, bundle, images, opener, wanted, tracking_uri)}
        if not runs.weights_in(partial).exists() or not facts["weights_sha256"]:
            raise ConfigurationError(
                f"{bundle.folder.name}: the training kept no weights. Train more epochs."
            )
        write_run_facts(partial, facts)
        partial.rename(runs.folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if wanted.serve:
        runs.serve(name)
    return facts


def _train_in(
    run_dir: Path,
    bundle: Segmenter,
    images: Sequence[AnnotatedImage],
    opener: ImageOpener,
    wanted: FineTuning,
    tracking_uri: str | None,
) -> dict[str, Any]:
    """Train and leave nothing but weights in the folder; return what is to be told of the run."""
    domain = wanted.domain or next(iter(bundle.domains), "annotated")
    dataset = run_dir / "dataset"
    counts = write_annotated_dataset(
        dataset,
        images,
        opener,
        domain=domain,
        class_names=bundle.class_names,
        validation_share=wanted.validation_share,
    )
    logger.info("%s: training on %s", bundle.folder.name, counts)
    _train(training_recipe(bundle), training_overrides(bundle, wanted, run_dir, domain, tracking_uri))
    shutil.rmtree(dataset)
    for state in run_dir.glob("*state.safetensors"):
        state.unlink()
    return {
        "bundle": bundle.folder.name,
        "images": counts,
        "epochs": wanted.epochs,
        "domain": domain,
        "start": wanted.start,
        "weights_sha256": {file.name: sha256_of_file(file) for file in sorted(run_dir.glob("*.safetensors"))},
    }


def training_overrides(
    bundle: Segmenter, wanted: FineTuning, run_dir: Path, domain: str, tracking_uri: str | None
) -> dict[str, Any]:
    """Return the values of ``train.json`` for a fine-tuning: what ``monai.bundle run`` would get as options.

    Raises:
        ConfigurationError: the bundle has no ``train.json``.
    """
    config = _train_config(bundle.folder)
    shared = {key: value for key, value in bundle.settings.items() if key in config}
    own: dict[str, Scalar | list[str]] = {
        "bundle_root": str(bundle.folder.resolve()),
        "dataset_dir": str(run_dir / "dataset"),
        "output_dir": str(run_dir),
        "device": f"$torch.device('{bundle.device}')",
        "epochs": wanted.epochs,
        "val_interval": max(1, wanted.epochs // 5),
        "hide_progress": True,
        "resume": False,
        "split_protocol": None,
    }
    if wanted.start != FROM_SCRATCH and bundle.checkpoint is not None:
        own["checkpoint"] = str(bundle.checkpoint)
    if wanted.learning_rate:
        own["lr"] = wanted.learning_rate
    if tracking_uri is not None:
        own["tracking_uri"] = tracking_uri
    overrides: dict[str, Any] = {**shared, **{key: value for key, value in own.items() if key in config}}
    if domains := bundle.domains:
        # The network keeps the branches of all its domains, and only one of them sees images.
        overrides |= {"domains": [domain], "network_def#domains": list(domains)}
    return overrides


def training_recipe(bundle: Segmenter) -> list[str]:
    """Return the configurations that train such weights: ``train.json``, and the overlays of compact weights."""
    values = {key: bundle.value(key) for key in ("instances", "backbone") if key in bundle.config}
    shared = ["shared_encoder"] if values.get("backbone") == "shared" else []
    compact = values.get("instances") == "distance" or (shared and bundle.value("sam_variant") == "hybrid")
    names = ["train", *shared, *(["compact"] if compact else [])]
    return [str(bundle.folder / "configs" / f"{name}.json") for name in names]


def _train(recipe: list[str], overrides: Mapping[str, Any]) -> None:
    workflow = ConfigWorkflow(
        config_file=recipe,
        logging_file=False,
        workflow_type="train",
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _train_config(folder: Path) -> dict[str, Any]:
    file = folder / "configs" / "train.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error}), so the bundle cannot be trained."
        ) from error
