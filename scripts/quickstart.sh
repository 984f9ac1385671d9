#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated UN-SAM: installs, trains the compact SAM on the demo images, evaluates
# it on the training domains and on a held-out one, and segments the test images. Finished steps are not repeated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

configs=bundles/unsam/configs
out="$project_dir/output/quickstart"
mkdir -p "$out"

step() { # step NAME COMMAND...: run a command once, remember that it finished
    local name=$1
    shift
    if [ -f "$out/.$name.done" ]; then
        echo "== $name: done before, see $out/$name"
        return
    fi
    echo "== $name"
    "$@"
    touch "$out/.$name.done"
}

step train python -m monai.bundle run training --config_file "$configs/train.json" \
    --output_dir "$out/train" --resume True
step evaluate python -m monai.bundle run evaluating --config_file "['$configs/train.json','$configs/evaluate.json']" \
    --checkpoint "$out/train/model.safetensors" --output_dir "$out/evaluate" --unseen_domain demo_he
step otsu python scripts/evaluate_otsu.py --output_dir "$out/otsu"
step predictions python -m monai.bundle run --config_file "$configs/inference.json" \
    --checkpoint "$out/train/model.safetensors" --output_dir "$out/predictions" --unseen_domain demo_he

echo
python scripts/results_table.py "UN-SAM=$out/evaluate" "Otsu=$out/otsu"
cat <<END

demo_cryo_zeroshot was never trained on; its images are answered by the branch of demo_he.
overlays of the evaluation (image, truth, prediction): $out/evaluate/overlays
segmented test images (label TIFF, GeoJSON, CSV, overlay): $out/predictions
training curves and tables: run 'mlflow ui' in $project_dir and open http://127.0.0.1:5000
END
