"""Read, write, validate and split dataset folders."""

from nucsam_monai.data.dataset import (
    Dataset,
    DatasetMetadata,
    class_names,
    domain_classes,
    find_datasets,
    load_items,
    read_dataset,
    training_domains,
)
from nucsam_monai.data.splits import random_split
from nucsam_monai.data.subset import balanced_weights, image_kind
from nucsam_monai.data.validation import DatasetSummary, validate_dataset
from nucsam_monai.data.writer import DatasetWriter

__all__ = [
    "Dataset",
    "DatasetMetadata",
    "DatasetSummary",
    "DatasetWriter",
    "balanced_weights",
    "class_names",
    "domain_classes",
    "find_datasets",
    "image_kind",
    "load_items",
    "random_split",
    "read_dataset",
    "training_domains",
    "validate_dataset",
]
