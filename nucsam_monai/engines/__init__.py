"""What MONAI's engines need for these methods beyond what they bring."""

from nucsam_monai.engines.cfrsam_batch import PrepareCFRSAMBatch
from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.engines.end_to_end_batch import PrepareEndToEndBatch, collate_end_to_end
from nucsam_monai.engines.image_folder import ReadableImages, inference_items
from nucsam_monai.engines.nucleus_batch import PrepareNucleusBatch, collate_nuclei
from nucsam_monai.engines.prepare_batch import PrepareDomainBatch, PreparePointsBatch, PrepareTruthBatch
from nucsam_monai.engines.prompter_batch import PreparePrompterBatch, collate_points
from nucsam_monai.engines.prompts_batch import PreparePromptsBatch
from nucsam_monai.engines.training_nuclei import FoundInTraining

__all__ = [
    "DomainBatchSampler",
    "FoundInTraining",
    "PrepareCFRSAMBatch",
    "PrepareDomainBatch",
    "PrepareEndToEndBatch",
    "PrepareNucleusBatch",
    "PreparePointsBatch",
    "PreparePrompterBatch",
    "PreparePromptsBatch",
    "PrepareTruthBatch",
    "ReadableImages",
    "collate_end_to_end",
    "collate_nuclei",
    "collate_points",
    "inference_items",
]
