"""MONAI Label's tasks for a bundle: segmenting, training and choosing the next image."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from nucsam_monai.apps.monailabel.answers import answer_with_label, answer_with_polygons
from nucsam_monai.apps.monailabel.datastore import NucleiDatastore
from nucsam_monai.apps.monailabel.fine_tuning import FROM_SCRATCH, FineTuning, fine_tune, training_options
from nucsam_monai.apps.monailabel.model import ServedModel, devices, read_device
from nucsam_monai.apps.monailabel.options import read_options
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.apps.monailabel.runs import ORIGINAL
from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import NucSAMError

logger = logging.getLogger(__name__)

MOST_JUDGED = 20
"""Images that one request for the next one looks at anew."""


class NucleiInferTask(InferTask):
    """A bundle that segments: whole images and regions, or the nuclei that are clicked.

    Args:
        model: the bundle.
        clicked: whether it is asked by clicks and boxes.
    """

    def __init__(self, model: ServedModel, *, clicked: bool = False) -> None:
        kind = InferType.DEEPGROW if clicked else InferType.SEGMENTATION
        how = "one nucleus for each click or box" if clicked else "all nuclei"
        super().__init__(type=kind, labels=None, dimension=2, description=f"{model.name}: {how}")
        self.model = model
        self.clicked = clicked

    def info(self) -> dict[str, Any]:
        """Return what clients show; it follows the weights that are served."""
        self.labels = {name: number for number, name in enumerate(self.model.class_names, start=1)}
        return {**super().info(), "pathology": True, "nuclick": self.clicked}

    def config(self) -> dict[str, Any]:
        """Return the options with their defaults; a list is a choice."""
        names = self.model.class_names
        colours = colours_of(np.arange(len(names))).tolist()
        shown = {option.name: option.shown for option in self.model.options()}
        return {**shown, "label_colors": dict(zip(names, colours, strict=True))}

    def is_valid(self) -> bool:
        """Return whether there are weights."""
        return self.model.has_weights

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the label image and what is said beside it; ``request["image"]`` is a path that was checked."""
        answer = answer_with_label(self.model, request, Path(request["image"]), clicked=self.clicked)
        return str(answer.file), answer.params

    def polygons(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the file of polygons, or none for ``output: json``, and what is said beside it."""
        answer = answer_with_polygons(self.model, request, Path(request["image"]), clicked=self.clicked)
        return None if answer.file is None else str(answer.file), answer.params


class NucleiTrainTask(TrainTask):
    """Fine-tuning on the annotations of the studies folder.

    Args:
        model: the bundle.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(f"{model.name}: fine-tune on the finished annotations; the weights go to a new run")
        self.model = model
        self.last: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """Return the options with their defaults."""
        return {option.name: option.shown for option in self._options()}

    def stats(self) -> dict[str, Any]:
        """Return the runs, and what the last one of this process wrote."""
        return {"served": self.model.runs.served(), "runs": self.model.runs.names(), **self.last}

    def __call__(self, request: Mapping[str, Any], datastore: NucleiDatastore) -> dict[str, Any]:
        """Train.

        Raises:
            DatasetError: the annotations cannot be used.
            RequestRefusedError: a value of the request is not permitted.
        """
        device = read_device(request.get("device"))
        values = read_options(self._options(), {**request, "device": device})
        start = str(values["start"])
        bundle = self.model.bundle(ORIGINAL if start == FROM_SCRATCH else start, device)
        wanted = FineTuning(
            epochs=int(values["max_epochs"]),
            learning_rate=float(values["lr"]) or None,
            validation_share=float(values["val_split"]),
            start=start,
            domain=str(values["domain"]) if "domain" in values else None,
            serve=bool(values["serve"]),
        )
        self.last = fine_tune(
            bundle,
            self.model.runs,
            datastore.annotated_images(),
            self.model.opener,
            wanted,
            tracking_uri=self.model.settings.tracking_uri,
        )
        return self.last

    def _options(self) -> Any:
        return training_options(self.model.runs, self.model.domains, devices())


class LeastCertain(Strategy):
    """Propose the image whose least certain nuclei are the least certain.

    Judgements are kept with the images and hold as long as the weights stay the same.

    Args:
        models: the bundles; a request names one by ``model``, the first is the default.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        super().__init__("the image with the least certain nuclei")
        self.models = models

    def __call__(self, request: Mapping[str, Any], datastore: NucleiDatastore) -> dict[str, Any] | None:
        """Return the id of an image without a finished annotation and its uncertainty, or None where all have one.

        Raises:
            RequestRefusedError: an unknown model, or one without weights.
        """
        ready = [name for name, model in self.models.items() if model.has_weights]
        name = request.get("model") or next(iter(ready), "")
        if name not in ready:
            raise RequestRefusedError(
                f"model '{str(name)[:60]}': expected one of {', '.join(ready) or 'none'}.", 404
            )
        model = self.models[name]
        key = f"uncertainty {name} {model.runs.served()}"
        judged: dict[str, float] = {}
        looked_at = 0
        for image_id in sorted(datastore.get_unlabeled_images()):
            known = datastore.get_image_info(image_id).get(key)
            if known is None and looked_at < MOST_JUDGED:
                looked_at += 1
                known = self._judge(model, image_id, datastore)
                datastore.update_image_info(image_id, {key: known})
            if known is not None:
                judged[image_id] = float(known)
        if not judged:
            return None
        chosen = max(judged, key=lambda image_id: (judged[image_id], image_id))
        return {"id": chosen, "uncertainty": judged[chosen], "judged": len(judged)}

    def _judge(self, model: ServedModel, image_id: str, datastore: NucleiDatastore) -> float:
        try:
            return model.uncertainty(datastore.image_path(image_id))
        except NucSAMError as error:
            logger.error("%s: cannot be judged: %s", image_id, error)
            return 0.0


class NucleiBatchInferTask(BatchInferTask):
    """All images of the folder one after the other, on whatever device there is."""

    def __call__(self, request: Mapping[str, Any], datastore: Any, infer: Callable[..., Any]) -> Any:
        """Run; an image that cannot be segmented is reported and does not stop the others.

        Several GPUs are not shared out, as MONAI Label does by default even where there is none.
        """

        def infer_or_report(one: Mapping[str, Any], *rest: Any) -> dict[str, Any]:
            try:
                return dict(infer(one, *rest))
            except NucSAMError as error:
                logger.error("%s: %s", one.get("image"), error)
                return {"error": str(error)}

        device = read_device(request.get("device"))
        own = {**request, "device": device, "multi_gpu": False, "max_workers": 1}
        return super().__call__(own, datastore, infer_or_report)
