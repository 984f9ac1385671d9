"""What MONAI's engines need for these methods beyond what they bring."""

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.engines.image_folder import ReadableImages, inference_items
from nucsam_monai.engines.prepare_batch import PrepareDomainBatch, PreparePointsBatch, PrepareTruthBatch

__all__ = [
    "DomainBatchSampler",
    "PrepareDomainBatch",
    "PreparePointsBatch",
    "PrepareTruthBatch",
    "ReadableImages",
    "inference_items",
]
