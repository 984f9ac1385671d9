"""Read the images to segment; a broken one is reported and skipped, a large one segmented in parts."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from nucsam_monai.data.dataset import DATASET_FILE, load_items
from nucsam_monai.engines.bundle import configured_segmenter, draw_demo
from nucsam_monai.engines.configuration import current_parser
from nucsam_monai.engines.results_folder import ResultsFolder
from nucsam_monai.io import find_images, output_stems
from nucsam_monai.io.decoders import ImageTooLargeError
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError

if TYPE_CHECKING:
    from nucsam_monai import Segmenter

logger = logging.getLogger(__name__)


def inference_items(
    source: str | Path, output_dir: str | Path, domain: str | None = None
) -> list[dict[str, str]]:
    """List the images to segment.

    Args:
        source: an image, a folder of images, a dataset folder or a folder of several; of datasets the test
            images are taken, with their own domains.
        output_dir: folder for the results.
        domain: the domain of the images, or ``"mean"``; None where it is unknown.

    Returns:
        Items with ``image`` (path), ``id`` (start of the output files' names, different for every item) and
        ``domain`` where known.

    Raises:
        ImageReadError: there is no image.
        ConfigurationError: the results would go among the images, where a second run would segment them.
    """
    source = Path(source)
    if source.is_dir() and source.resolve() == Path(output_dir).resolve():
        raise ConfigurationError(f"output_dir {output_dir}: is the folder of the images. Choose another one.")
    draw_demo(source)
    known = {} if domain is None else {"domain": domain}
    if (source / DATASET_FILE).is_file() or any(source.glob(f"*/{DATASET_FILE}")):
        return [{**item, **known} for item in _test_items(source)]
    stems = output_stems(find_images(source))
    return [{"image": str(path), "id": stem, **known} for path, stem in stems.items()]


def _test_items(source: Path) -> list[dict[str, str]]:
    """Return the test images; where datasets share an id, the dataset's folder is put before it."""
    items = load_items(source, "test")
    uses = Counter(item["id"] for item in items)
    return [
        {
            "image": item["image"],
            "id": item["id"] if uses[item["id"]] == 1 else f"{_dataset_name(item)}_{item['id']}",
            "domain": item["domain"],
        }
        for item in items
    ]


def _dataset_name(item: Mapping[str, str]) -> str:
    return Path(item["image"]).parents[1].name


class ReadableImages(IterableDataset):
    """Yield transformed items; report and skip images that cannot be read.

    An image that the transform finds too large is not yielded either: it is segmented in parts, and its results are
    written to the folder.

    Args:
        data: the items.
        transform: loads and prepares an item.
        results: knows which items are left, and records large images and those that cannot be read.

    Raises:
        ImageReadError: at the end without ``results``, if not a single image could be read.
        ConfigurationError: several worker processes of a loader, each of which would yield every image.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[[dict[str, Any]], Any],
        results: ResultsFolder | None = None,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.results = results
        # Not the parser itself: MONAI's loader seeds whatever it finds among the attributes of a dataset.
        self._configured_segmenter = partial(configured_segmenter, current_parser())

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigurationError(
                f"num_workers {worker.num_workers}: expected 0 or 1 for a folder of images."
            )
        unreadable, segmenter = 0, lru_cache(self._configured_segmenter)
        for item in self.data if self.results is None else self.results.left:
            try:
                prepared = self.transform(dict(item))
            except (ImageReadError, RuntimeError) as error:  # MONAI wraps what a transform raises
                reason = _read_error(error)
                if reason is None:
                    raise
                if isinstance(reason, ImageTooLargeError) and self.results is not None:
                    reason = _segment_in_parts(item, segmenter, self.results)
                if reason is None:
                    continue
                unreadable += 1
                logger.error("skipped: %s", reason)
                if self.results is not None:
                    self.results.fail(item["id"], str(reason))
                continue
            yield prepared
        if unreadable and self.results is None:
            message = f"{unreadable} of {len(self.data)} images could not be read and were skipped."
            if unreadable == len(self.data):
                raise ImageReadError(message)
            logger.warning(message)


def _segment_in_parts(
    item: Mapping[str, Any], load: Callable[[], "Segmenter"], results: ResultsFolder
) -> ImageReadError | None:
    """Segment a large image and write what was found; return why that is impossible."""
    try:
        segmenter = load()
        found = segmenter.segment(item["image"], domain=item.get("domain") if segmenter.domains else None)
    except ImageReadError as error:
        return error
    paths = found.save(results.folder, item["id"], overlay_px=segmenter.value("overlay_px"))
    results.add(item["id"], len(found), list(paths.values()))
    logger.info("%s: %d nuclei, %s", item["id"], len(found), paths["instances"])
    return None


def _read_error(error: BaseException | None) -> ImageReadError | None:
    """Return the ``ImageReadError`` that an exception is or was raised from."""
    while error is not None and not isinstance(error, ImageReadError):
        error = error.__cause__
    return error
