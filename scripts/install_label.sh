#!/usr/bin/env bash
# Installs MONAI Label 0.8.5 next to this project, in an environment of its own: .venv-label, or the folder given.
# What is installed already stays, so that it can be run again.
#
#   bash scripts/install_label.sh [folder]
set -euo pipefail
project_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$project_dir"
target="${1:-.venv-label}"

if [ ! -x "$target/bin/python" ]; then
    for candidate in python3.11 python3.10; do
        if command -v "$candidate" >/dev/null; then
            echo "making $target with $("$candidate" --version)"
            "$candidate" -m venv "$target"
            break
        fi
    done
fi
if [ ! -x "$target/bin/python" ]; then
    echo "No Python 3.10 or 3.11 found; MONAI Label 0.8.5 is known to work with these only." >&2
    exit 1
fi

wanted="$(cat requirements.txt requirements-label.txt pyproject.toml scripts/install_label.sh | cksum)"
stamp="$target/.nucsam_label_installed"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "MONAI Label is installed in $target"
    exit
fi
echo "installing MONAI Label into $target (about 6 GB where PyTorch is not there yet)"
pip=("$target/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" -r requirements.txt
"${pip[@]}" -r requirements-label.txt
"${pip[@]}" --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
"$target/bin/python" -c "import monailabel.app, nucsam_monai.apps.monailabel.main" >/dev/null
echo "$wanted" >"$stamp"

cat <<END

Installed. Start the server with the images of a folder:

  source $target/bin/activate
  monailabel start_server --app nucsam_monai/apps/monailabel --studies <folder> --conf models unsam --host 127.0.0.1
END
