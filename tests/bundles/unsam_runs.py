"""Runs of the UN-SAM bundle."""

from tests.bundles.runs import BundleRuns

UNSAM = BundleRuns("unsam")
BUNDLE, CONFIGS = UNSAM.folder, UNSAM.configs
bundle, train, evaluate = UNSAM.bundle, UNSAM.train, UNSAM.evaluate
