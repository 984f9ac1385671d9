#!/usr/bin/env bash
# Installs what the tests need, checks style and types, and runs the whole test suite. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test

ruff check .
ruff format --check .
mypy
# One thread per worker: two workers on two cores, and sums in the same order everywhere.
OMP_NUM_THREADS=1 python -m pytest -n "${PYTEST_WORKERS:-2}" --dist loadfile --durations=25 "$@"
