"""The images that a user wants segmented, of which one may be broken."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from nucsam_monai.data.dataset import DATASET_FILE, load_items
from nucsam_monai.io import find_images, output_stems, read_image
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError

logger = logging.getLogger(__name__)


def inference_items(
    source: str | Path, output_dir: str | Path, domain: str | None = None
) -> list[dict[str, str]]:
    """List what is to be segmented.

    Args:
        source: an image, a folder of images, a dataset folder or a folder of several; of datasets the test
            images are taken, with their own domains.
        output_dir: where the results go.
        domain: the domain of the images, or ``"mean"``; None where it is unknown.

    Returns:
        Items with ``image`` (path), ``id`` (start of the output files' names) and ``domain`` where known.

    Raises:
        ImageReadError: there is no image.
        ConfigurationError: the results would go among the images, where a second run would segment them.
    """
    source = Path(source)
    if source.is_dir() and source.resolve() == Path(output_dir).resolve():
        raise ConfigurationError(f"output_dir {output_dir}: is the folder of the images. Choose another one.")
    known = {} if domain is None else {"domain": domain}
    if (source / DATASET_FILE).is_file() or any(source.glob(f"*/{DATASET_FILE}")):
        items = load_items(source, "test")
        return [{"image": item["image"], "id": item["id"], "domain": item["domain"], **known} for item in items]
    stems = output_stems(find_images(source))
    return [{"image": str(path), "id": stem, **known} for path, stem in stems.items()]


class ReadableImages(IterableDataset):
    """Transformed items, one after the other; an image that cannot be read is reported and passed over.

    Args:
        data: the items.
        transform: loads and prepares an item.

    Raises:
        ImageReadError: at the end, if not a single image could be read.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable[[dict[str, Any]], Any]) -> None:
        self.data = list(data)
        self.transform = transform

    def __iter__(self) -> Iterator[Any]:
        unreadable = 0
        for item in self.data:
            try:
                prepared = self.transform(dict(item))
            except RuntimeError:  # MONAI wraps what a reader raises and tries its other readers
                try:
                    read_image(item["image"])
                except ImageReadError as reason:
                    unreadable += 1
                    logger.error("skipped: %s", reason)
                    continue
                raise
            yield prepared
        if unreadable:
            message = f"{unreadable} of {len(self.data)} images could not be read and were skipped."
            if unreadable == len(self.data):
                raise ImageReadError(message)
            logger.warning(message)
