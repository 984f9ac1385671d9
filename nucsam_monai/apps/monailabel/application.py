"""Define the application that MONAI Label loads, and its tasks: segment, train and choose the next image."""

import logging
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings as server_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.sessions import Sessions

import nucsam_monai
from nucsam_monai.apps.monailabel.answers import answer_with_label, answer_with_polygons
from nucsam_monai.apps.monailabel.datastore import NucleiDatastore
from nucsam_monai.apps.monailabel.fine_tuning import FROM_SCRATCH, FineTuning, fine_tune, training_options
from nucsam_monai.apps.monailabel.guard import GuardOptions, RequestGuard
from nucsam_monai.apps.monailabel.images import ImageOpener
from nucsam_monai.apps.monailabel.model import ORIGINAL, ServedModel, devices, read_device
from nucsam_monai.apps.monailabel.options import read_options
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError, refusal_of
from nucsam_monai.apps.monailabel.settings import TOKEN_VARIABLE, read_settings
from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

logger = logging.getLogger(__name__)

CLICK_SUFFIX = "_click"
MOST_JUDGED = 20
"""How many new images one request for the next image judges."""


class NucleiInferTask(InferTask):
    """Segment with a bundle: whole images and regions, or the nuclei that are clicked.

    Args:
        model: the bundle.
        clicked: whether it takes clicks and boxes.
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
        """Return the label image and the JSON next to it; ``request["image"]`` is a path that was checked."""
        answer = answer_with_label(self.model, request, Path(request["image"]), clicked=self.clicked)
        return str(answer.file), answer.params

    def polygons(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the file of polygons, or none for ``output: json``, and the JSON next to it."""
        answer = answer_with_polygons(self.model, request, Path(request["image"]), clicked=self.clicked)
        return None if answer.file is None else str(answer.file), answer.params


class NucleiTrainTask(TrainTask):
    """Fine-tune a bundle on the annotations of the studies folder.

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
        """Train and return what ``run.json`` holds.

        Raises:
            DatasetError: the annotations cannot be used.
            RequestRefusedError: a value of the request is not allowed.
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
    """Segment all images of the folder one after the other, on one device."""

    def __call__(self, request: Mapping[str, Any], datastore: Any, infer: Callable[..., Any]) -> Any:
        """Run the task; an image that cannot be segmented is reported and does not stop the others.

        Several GPUs are not shared out, as MONAI Label does by default even without any.
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


_ANSWERED = (
    Exception,
    RuntimeError,
    OSError,
    TypeError,
    ValueError,
    MONAILabelException,
    NucSAMError,
    HTTPException,
)
"""Exceptions answered by :func:`_answer_error`; the server looks for the nearest class."""


class NucleiLabelApp(MONAILabelApp):
    """Serve the bundles of this project with MONAI Label.

    Args:
        app_dir: this folder.
        studies: the folder of the images.
        conf: settings of the server, see :func:`~nucsam_monai.apps.monailabel.settings.read_settings`.

    Raises:
        ConfigurationError: an option is wrong, or the studies are not a folder.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.own = read_settings(conf)
        if "://" in studies:
            raise ConfigurationError(f"--studies {studies}: expected a folder; remote stores are not served.")
        self.opener = ImageOpener(self.own.max_pixels)
        self.models = {name: ServedModel(name, self.own, self.opener) for name in self.own.bundles}
        # Uploads go to a folder with a random name, so that a path in it can only be an upload.
        self.uploads = tempfile.TemporaryDirectory(prefix=f"nucsam-{secrets.token_hex(16)}-")
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="nucsam_monai",
            description="Nuclei segmentation with SAM: whole slides, clicks, fine-tuning and active learning",
            version=nucsam_monai.__version__,
        )
        for name, model in self.models.items():
            if not model.has_weights:
                logger.warning("%s: no weights at %s, so it is not offered yet.", name, model.runs.original)

    def init_datastore(self) -> NucleiDatastore:
        """Return the studies folder."""
        return NucleiDatastore(
            self.studies, self.opener, watch=server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return each bundle for whole images, and once more for clicks where it takes them."""
        tasks: dict[str, InferTask] = {name: NucleiInferTask(model) for name, model in self.models.items()}
        for name, model in self.models.items():
            if model.takes_clicks:
                tasks[name + CLICK_SUFFIX] = NucleiInferTask(model, clicked=True)
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the fine-tuning of each bundle."""
        return {name: NucleiTrainTask(model) for name, model in self.models.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return how the next image is chosen."""
        return {"least_certain": LeastCertain(self.models), "random": Random()}

    def init_batch_infer(self) -> Callable[..., Any]:
        """Return what segments all images."""
        return NucleiBatchInferTask()

    def infer(self, request: Mapping[str, Any], datastore: NucleiDatastore | None = None) -> dict[str, Any]:
        """Segment one image into a label image, and keep that if the request says so.

        Raises:
            RequestRefusedError: an unknown model or image, or a value that is not allowed.
        """
        task, path = self._task(request), self._image(request)
        file, params = task({**request, "image": str(path)})
        tag = str(request.get("label_tag") or "original")
        label = file
        if request.get("save_label") and path.parent != Path(self.uploads.name):
            facts = {key: value for key, value in params.items() if key not in ("annotation", "scores")}
            label = self.datastore().save_label(
                request["image"], file, tag, {"model": request["model"], "params": facts}
            )
        return {"label": label, "tag": tag, "file": file, "params": params}

    def infer_wsi(
        self, request: Mapping[str, Any], datastore: NucleiDatastore | None = None
    ) -> dict[str, Any]:
        """Segment a region of an image or a slide into polygons.

        Raises:
            RequestRefusedError: as of :meth:`infer`.
        """
        file, params = self._task(request).polygons({**request, "image": str(self._image(request))})
        return {"file": file, "params": params}

    def on_init_complete(self) -> None:
        """Stand before the server that loaded the application; MONAI Label calls this once it is up."""
        tempfile.tempdir = self.uploads.name
        if "monailabel.app" in sys.modules:
            self._guard(sys.modules["monailabel.app"].app)
        super().on_init_complete()

    def _guard(self, server: Any) -> None:
        for kind in _ANSWERED:
            server.add_exception_handler(kind, _answer_error)
        options = GuardOptions(self.own.token, self.own.max_upload_bytes, self.own.origins)
        server.middleware_stack = RequestGuard(server.build_middleware_stack(), options)
        if not self.own.chosen_token:
            # Not through the log: /logs shows that.
            sys.stderr.write(
                "Requests from other machines need 'Authorization: Bearer "
                f"{self.own.token}' (set {TOKEN_VARIABLE} to choose it); those of this machine need nothing.\n"
            )

    def _load_sessions(self, load: bool = False) -> Sessions | None:
        return Sessions(str(Path(self.uploads.name) / "sessions"), server_settings.MONAI_LABEL_SESSION_EXPIRY)

    def _task(self, request: Mapping[str, Any]) -> NucleiInferTask:
        task = self._infers.get(request.get("model"))
        if task is None:
            raise RequestRefusedError(
                f"model '{str(request.get('model'))[:60]}': expected one of {', '.join(self._infers)}.", 404
            )
        return task

    def _image(self, request: Mapping[str, Any]) -> Path:
        """Return the path of an upload or of an image in the studies folder, the only ones that are served."""
        image = request.get("image")
        if isinstance(image, str) and image.startswith(self.uploads.name):
            upload = Path(image).resolve()
            if upload.is_relative_to(Path(self.uploads.name).resolve()) and upload.is_file():
                return upload
        return self.datastore().image_path(image)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with a 400 what the client can mend, and with an uninformative 500 what it cannot."""
    known = refusal_of(error)
    if isinstance(error, HTTPException):
        # MONAI Label calls it its own fault when a request names no image.
        forgotten = error.status_code == 500 and str(error.detail).startswith("Neither")
        known = 400 if forgotten else error.status_code, str(error.detail)
    if known is None and isinstance(error, TypeError) and _raised_in_endpoint(error):
        known = 400, "the request does not have the expected form: expected JSON objects."
    if known is None and isinstance(error, MONAILabelException):
        known = (404 if "not found" in str(error.msg).lower() else 400), str(error.msg)
    if known is None and isinstance(error, ValueError) and type(error).__module__.startswith("pydantic"):
        known = 422, "the request does not have the expected form."
    if known is None:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        known = 500, f"{type(error).__name__}: see the server's log."
    return JSONResponse({"detail": known[1]}, status_code=known[0])


def _raised_in_endpoint(error: BaseException) -> bool:
    """Return whether MONAI Label failed to read the request, before any processing."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and "/monailabel/endpoints/" in Path(frames[-1]).as_posix()
