"""Experiments: several methods on several datasets by one protocol, from one file to one report."""

from nucsam_monai.apps.experiments.app import main, plan, run_experiment
from nucsam_monai.apps.experiments.description import Experiment
from nucsam_monai.apps.experiments.grid import Grid, expand
from nucsam_monai.apps.experiments.places import Places
from nucsam_monai.apps.experiments.reading import read_experiment

__all__ = ["Experiment", "Grid", "Places", "expand", "main", "plan", "read_experiment", "run_experiment"]
