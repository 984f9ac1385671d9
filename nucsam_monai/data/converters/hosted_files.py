"""The archives that their publishers offer to everybody without an account or a form."""

from collections.abc import Mapping
from dataclasses import dataclass

from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class HostedFile:
    """A file on its publisher's server, and what it must be.

    Attributes:
        url: where it lies.
        name: name of the file.
        sha256: digest of the file.
        max_bytes: a longer answer is not this file.
    """

    url: str
    name: str
    sha256: str
    max_bytes: int


HOSTED_FILES: Mapping[str, HostedFile] = {
    # Neither publisher states a SHA-256. These are the digests that others took of their own downloads:
    # - 82,923,446 bytes in the Git LFS pointer stage1_train.zip of
    #   https://github.com/rishilImperialX/nucleus_segmented_dataset (commit e9f702d2), the same digest in
    #   https://github.com/fsantibanezleal/CAOS_FrothSeg, data/derived/real-adjacent-dataset-manifest.json
    #   (commit 1e7e8674; 670 images);
    "dsb2018": HostedFile(
        url="https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
        name="stage1_train.zip",
        sha256="dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
        max_bytes=82_923_446,
    ),
    # - https://github.com/constantinpape/torch-em, torch_em/data/datasets/histopathology/tnbc.py (commit
    #   00532652), for this very URL. Its number of bytes is not stated there, hence the generous limit;
    #   version 1.1 of the dataset (https://zenodo.org/records/2579118) is another file of 25,232,361 bytes.
    "tnbc": HostedFile(
        url="https://zenodo.org/records/1175282/files/TNBC_NucleiSegmentation.zip",
        name="TNBC_NucleiSegmentation.zip",
        sha256="da708c3a988f4ad4b9bbb9283b387faf703f0bc0e5e689927306bd27ea13a57f",
        max_bytes=200_000_000,
    ),
}
"""``{dataset name: file}``; the other datasets are given out by form, by account or by a file-sharing page."""


def hosted_file(dataset: str) -> HostedFile:
    """Return the file of a dataset that can be downloaded.

    Raises:
        ConfigurationError: the dataset is not openly hosted.
    """
    if dataset not in HOSTED_FILES:
        raise ConfigurationError(
            f"dataset '{dataset}': only {', '.join(HOSTED_FILES)} can be downloaded. "
            "'list' says where to get the others."
        )
    return HOSTED_FILES[dataset]
