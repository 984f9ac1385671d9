"""The report of an evaluation of a whole dataset."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nucsam_monai.metrics.bootstrap import Bootstrap
from nucsam_monai.metrics.measurement import EvaluationSettings
from nucsam_monai.metrics.statistics import Estimate, interval_cells, value_cells
from nucsam_monai.metrics.summary import SubsetSummary


@dataclass(frozen=True)
class ClassSummary:
    """The values of one class.

    Attributes:
        name: of the class.
        images: images whose ground truth has a nucleus of the class.
        estimates: ``pq`` is the mean over these images, ``dq_plus``, ``sq_plus`` and ``pq_plus`` are pooled over
            all images, ``hovernet_*`` and ``greedy_*`` are the classification by either protocol.
    """

    name: str
    images: int
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class SkippedImages:
    """How many images have no value of a metric and are left out of its mean."""

    metric: str
    images: int
    reason: str


@dataclass(frozen=True)
class DatasetEvaluation:
    """What an evaluation of a whole dataset found.

    Attributes:
        settings: what was measured.
        bootstrap: how the confidence intervals were computed.
        unit: ``"image"`` or ``"group"``: what the bootstrap draws as a whole.
        units: how many there are.
        per_image: one row per image: ``id``, where known ``domain``, ``tissue``, ``group`` and ``fold``, and every
            per-image metric (NaN where the image has no value).
        summary: one entry per domain and, of several, one of all images.
        per_tissue: one entry per tissue and, of several, one of all images; empty without tissues.
        per_class: one entry per class; empty without classes.
        tissue_means: ``bpq_tissue`` (mean over images of a tissue, over folds, over tissues: the headline of
            PanNuke), ``bpq_global`` (mean over all images of a fold, over folds), and the same of ``mpq`` where
            there are classes; empty without tissues.
        skipped: which metrics lack images, how many and why.
    """

    settings: EvaluationSettings
    bootstrap: Bootstrap
    unit: str
    units: int
    per_image: tuple[Mapping[str, Any], ...]
    summary: tuple[SubsetSummary, ...]
    per_tissue: tuple[SubsetSummary, ...]
    per_class: tuple[ClassSummary, ...]
    tissue_means: Mapping[str, Estimate]
    skipped: tuple[SkippedImages, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain mappings, lists, texts and numbers, ready for tables and JSON.

        Every estimate becomes three cells: ``<metric>``, ``<metric>_ci_low`` and ``<metric>_ci_high``.
        """
        return {
            "class_names": list(self.settings.class_names),
            "radius_px": self.settings.radius_px,
            "bootstrap": {**asdict(self.bootstrap), "unit": self.unit, "units": self.units},
            "per_image": [dict(row) for row in self.per_image],
            "summary": [subset.to_row("domain") for subset in self.summary],
            "per_tissue": [subset.to_row("tissue") for subset in self.per_tissue],
            "per_class": [
                {
                    "class": entry.name,
                    "images": entry.images,
                    **value_cells(entry.estimates),
                    **interval_cells(entry.estimates),
                }
                for entry in self.per_class
            ],
            "tissue_means": {**value_cells(self.tissue_means), **interval_cells(self.tissue_means)},
            "skipped": [asdict(entry) for entry in self.skipped],
        }
