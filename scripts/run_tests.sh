#!/usr/bin/env bash
# Installs what the tests need, checks style and types, and runs the whole test suite. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
# MONAI Label runs in Python 3.10 and 3.11; elsewhere the tests of its server are skipped.
if python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))'; then
    bash scripts/install_label.sh "$VIRTUAL_ENV"
fi

ruff check .
ruff format --check .
mypy
# One thread per worker: two workers on two cores, and sums in the same order everywhere. Bytecode is kept: tests start
# processes, and each would compile the package again.
PYTHONDONTWRITEBYTECODE='' OMP_NUM_THREADS=1 python -m pytest -n "${PYTEST_WORKERS:-2}" --dist loadfile --durations=25 "$@"
