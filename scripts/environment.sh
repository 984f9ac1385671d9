# Sourced by the other scripts: gives a Python environment that holds the package.
#
#   source scripts/environment.sh        what a user needs
#   source scripts/environment.sh test   with what the tests need
#
# An active virtual environment is used; otherwise .venv is made. What is installed already stays.

project_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$project_dir"
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        for candidate in python3.12 python3.11 python3.13 python3.10 python3; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                echo "making .venv with $("$candidate" --version)"
                "$candidate" -m venv .venv
                break
            fi
        done
    fi
    if [ ! -x .venv/bin/python ]; then
        echo "No Python 3.10 or newer found. Install one (python.org) and run this script again." >&2
        exit 1
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi

wanted="$(cat requirements.txt pyproject.toml | cksum) ${1:-run}"
stamp="$VIRTUAL_ENV/.nucsam_monai_installed"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $VIRTUAL_ENV (about 6.5 GB the first time)"
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    if [ -n "${1:-}" ]; then
        python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    fi
    echo "$wanted" >"$stamp"
fi
