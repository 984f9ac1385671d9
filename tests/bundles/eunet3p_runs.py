"""Runs of the bundle of SAM-guided eU-Net3+."""

from tests.bundles.runs import TINY, BundleRuns

EUNET3P = BundleRuns("sam_eunet3p", {**TINY, "filters": [4, 4, 8, 8, 16]})
