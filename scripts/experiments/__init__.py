"""Experiments: several methods on several datasets by one protocol, from one file to one report."""

from experiments.description import Experiment, read_experiment
from experiments.running import main, plan, run_experiment
from experiments.steps import Grid, Places, expand

__all__ = ["Experiment", "Grid", "Places", "expand", "main", "plan", "read_experiment", "run_experiment"]
