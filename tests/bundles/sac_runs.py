"""Runs of the SAC bundle."""

from tests.bundles.runs import TINY, BundleRuns

SAC = BundleRuns("sac", {**TINY, "generator_input_size": None})
