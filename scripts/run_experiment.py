"""Train, evaluate and report an experiment: a paper's table with one command.

Examples::

    python scripts/run_experiment.py scripts/experiments/unsam/table_2.yaml                    # compact SAM, demo data
    python scripts/run_experiment.py scripts/experiments/unsam/table_2.yaml --only_plan True   # what would be done
    python scripts/run_experiment.py scripts/experiments/unsam/table_2.yaml --datasets dsb2018,monuseg --jobs 2
    python scripts/run_experiment.py scripts/experiments/unsam/table_2.yaml --form paper --weights_dir weights

The same command again continues where it stopped. See docs/experiments.md.
"""

import sys

from experiments import main

from nucsam_monai.apps.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(main, name="experiment"))
