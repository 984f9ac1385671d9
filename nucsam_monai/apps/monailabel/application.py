"""The application that MONAI Label loads."""

import logging
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings as server_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.sessions import Sessions

import nucsam_monai
from nucsam_monai.apps.monailabel.datastore import NucleiDatastore
from nucsam_monai.apps.monailabel.guard import GuardOptions, RequestGuard
from nucsam_monai.apps.monailabel.image_source import ImageOpener
from nucsam_monai.apps.monailabel.model import ServedModel
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError, refusal_of
from nucsam_monai.apps.monailabel.settings import TOKEN_VARIABLE, read_settings
from nucsam_monai.apps.monailabel.tasks import (
    LeastCertain,
    NucleiBatchInferTask,
    NucleiInferTask,
    NucleiTrainTask,
)
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

logger = logging.getLogger(__name__)

CLICK_SUFFIX = "_click"

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
"""What gets an answer of :func:`_answer_error`; the server looks for the nearest class."""


class NucleiLabelApp(MONAILabelApp):
    """The bundles of this project behind MONAI Label.

    Args:
        app_dir: this folder.
        studies: the folder of the images.
        conf: see :func:`~nucsam_monai.apps.monailabel.settings.read_settings`.

    Raises:
        ConfigurationError: an option is wrong, or the studies are not a folder.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.own = read_settings(conf)
        if "://" in studies:
            raise ConfigurationError(f"--studies {studies}: expected a folder; remote stores are not served.")
        self.opener = ImageOpener(self.own.max_pixels)
        self.models = {name: ServedModel(name, self.own, self.opener) for name in self.own.bundles}
        # Uploads go to a folder whose name nobody can guess, so that a path in it can only be an upload.
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
        """Segment one image into a label image, and keep that where the request says so.

        Raises:
            RequestRefusedError: an unknown model or image, or a value that is not permitted.
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
        """Return the path of an upload, or of an image of the studies folder; there are no others."""
        image = request.get("image")
        if isinstance(image, str) and image.startswith(self.uploads.name):
            upload = Path(image).resolve()
            if upload.is_relative_to(Path(self.uploads.name).resolve()) and upload.is_file():
                return upload
        return self.datastore().image_path(image)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with a 400 what the client can mend, and with a 500 that tells nothing what it cannot."""
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
    """Return whether MONAI Label stumbled as it read the request, before anything was done."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and "/monailabel/endpoints/" in Path(frames[-1]).as_posix()
