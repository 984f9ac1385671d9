"""Keep the studies folder: MONAI Label's local datastore, which reads and writes nothing outside of itself."""

import filecmp
import logging
import re
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from nucsam_monai.apps.monailabel.annotations import POLYGON_SUFFIXES, read_polygons
from nucsam_monai.apps.monailabel.fine_tuning import ANNOTATION_SUFFIXES, AnnotatedImage
from nucsam_monai.apps.monailabel.images import IMAGE_SUFFIXES, ImageOpener, read_label
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError, check_name

logger = logging.getLogger(__name__)

_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINAL = "final"


class NucleiDatastore(LocalDatastore):
    """Store the images and annotations of one folder.

    An id is the name of an image without its suffix. Whatever a request names, and whatever links lie in the
    folder: only files inside of it are read and written. Uploads are opened before they are kept.

    Args:
        folder: the studies folder.
        opener: reads images.
        watch: follow changes of the folder.
    """

    def __init__(self, folder: str, opener: ImageOpener, *, watch: bool = True) -> None:
        self.root = Path(folder).resolve()
        self.opener = opener
        patterns = [f"*{cased}" for suffix in IMAGE_SUFFIXES for cased in (suffix, suffix.upper())]
        super().__init__(str(self.root), extensions=patterns, auto_reload=watch)

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image, or an empty text for an unknown one."""
        return self._inside(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of an annotation, or an empty text for an unknown one."""
        return self._inside(super().get_label_uri(label_id, label_tag))

    def image_path(self, image_id: Any) -> Path:
        """Return the path of an image.

        Raises:
            RequestRefusedError: there is no such image.
        """
        path = self.get_image_uri(image_id) if isinstance(image_id, str) else ""
        if not path:
            raise RequestRefusedError(
                f"image '{str(image_id)[:100]}': not in the studies folder. GET /datastore/?output=all lists all.",
                404,
            )
        return Path(path)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep an uploaded image.

        Raises:
            RequestRefusedError: 409 where another image has the id, 415 for an unknown format.
            ImageReadError: it is damaged or too large.
        """
        upload = Path(image_filename)
        _, suffix = self._to_id(upload.name)
        check_name(f"{image_id}{suffix}", "image")
        if suffix.lower() not in IMAGE_SUFFIXES:
            raise RequestRefusedError(
                f"image '{image_id}': format '{suffix}', expected one of {', '.join(IMAGE_SUFFIXES)}.", 415
            )
        self.opener.open(upload).close()
        known = self.get_image_uri(image_id)
        if known and not filecmp.cmp(known, upload, shallow=False):
            raise RequestRefusedError(f"image '{image_id}': exists already with other content.", 409)
        return str(super().add_image(image_id, image_filename, image_info))

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its annotations.

        Raises:
            RequestRefusedError: there is no such image.
        """
        self.image_path(image_id)
        super().remove_image(image_id)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Keep an annotation: a label image or outlines.

        Raises:
            RequestRefusedError: 404 for an unknown image, 415 for an unknown format, 400 for a bad tag.
            DatasetError: the outlines cannot be read.
            ImageReadError: the label image cannot be read.
        """
        self.image_path(image_id)
        if not _TAG.fullmatch(label_tag):
            raise RequestRefusedError(f"tag {label_tag[:80]!r}: expected letters, digits, '_' and '-'.")
        upload = Path(label_filename)
        name = upload.name.lower()
        if not name.endswith(ANNOTATION_SUFFIXES):
            raise RequestRefusedError(
                f"label of '{image_id}': format '{upload.suffix}', expected one of {', '.join(ANNOTATION_SUFFIXES)}.",
                415,
            )
        if name.endswith(POLYGON_SUFFIXES):
            read_polygons(upload)
        else:
            read_label(upload, self.opener.max_pixels)
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove an annotation.

        Raises:
            RequestRefusedError: there is no such annotation.
        """
        if not self.get_label_uri(label_id, label_tag):
            raise RequestRefusedError(
                f"label '{label_id[:100]}' with tag '{label_tag[:60]}': not there.", 404
            )
        super().remove_label(label_id, label_tag)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return the path of an archive of all annotated images.

        Raises:
            RequestRefusedError: no image is annotated.
        """
        if not self.datalist():
            raise RequestRefusedError("no image is annotated yet, so there is nothing to download.", 404)
        return str(super().get_dataset_archive(limit_cases))

    def annotated_images(self) -> list[AnnotatedImage]:
        """Return the images with a finished annotation."""
        return [
            AnnotatedImage(image_id, self.image_path(image_id), Path(label))
            for image_id in sorted(self.get_labeled_images())
            if (label := self.get_label_uri(image_id, _FINAL))
        ]

    def _inside(self, path: str) -> str:
        return path if path and Path(path).resolve().is_relative_to(self.root) else ""

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """Leave out links to files elsewhere when the folder is read."""
        found: dict[str, str] = super()._list_files(path, patterns)
        outside = {name for name in found if not self._inside(str(Path(path) / name))}
        for name in sorted(outside):
            logger.warning("%s: a link out of the studies folder; not served.", name)
        return {name: file for name, file in found.items() if name not in outside}

    def _to_id(self, file: str) -> tuple[str, str]:
        """Split a file's name into id and suffix; MONAI Label's own removes the suffix wherever it occurs."""
        suffixes = [
            suffix for suffix in (*IMAGE_SUFFIXES, *ANNOTATION_SUFFIXES) if file.lower().endswith(suffix)
        ]
        length = max(map(len, suffixes), default=len(Path(file).suffix))
        return (file[:-length], file[-length:]) if length else (file, "")
