#!/usr/bin/env bash
# From a fresh clone to segmented nuclei: installs, segments the sample images with the weights of UN-SAM and measures
# the result. With --train it then trains the compact SAM on the demo images, evaluates it on the training domains and
# on a held-out one, and segments the test images. Finished steps of the training are not repeated.
set -euo pipefail
case "${1:-}" in
"" | --train) ;;
*)
    echo "quickstart.sh: expected nothing or --train, found '$1'." >&2
    exit 2
    ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

configs=bundles/unsam/configs
samples=tests/data/samples
out="$project_dir/output/quickstart"
mkdir -p "$out"

echo "== samples"
if ! python -m monai.bundle run --config_file "$configs/inference.json" --input "$samples" --output_dir "$out/samples" \
    >"$out/samples.log" 2>&1; then
    tail -n 20 "$out/samples.log" >&2
    exit 1
fi
python scripts/evaluate_predictions.py --dataset "$samples" --predictions "$out/samples" --output_dir "$out/samples_evaluated" \
    2>>"$out/samples.log" | grep -E '^(samples|metric|aji|pq)[: ]'
python scripts/overlay_sheet.py --overlays "$out/samples" --output "$out/samples.png"
echo "overlays, label TIFFs, GeoJSON and tables: $out/samples"

if [ "${1:-}" != --train ]; then
    echo "next: your own images with --input, see README.md, or a training on demo images: bash scripts/quickstart.sh --train"
    exit 0
fi

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
demo="$(python -c 'from nucsam_monai.data.demo import demo_dataset_dir; print(demo_dataset_dir())')"
step predictions python -m monai.bundle run --config_file "$configs/inference.json" --input "$demo" \
    --checkpoint "$out/train/model.safetensors" --output_dir "$out/predictions" --unseen_domain demo_he

echo
python scripts/results_table.py "UN-SAM=$out/evaluate" "Otsu=$out/otsu"
cat <<END

demo_cryo_zeroshot was never trained on; its images are answered by the branch of demo_he.
overlays of the evaluation (image, truth, prediction): $out/evaluate/overlays
segmented test images (label TIFF, GeoJSON, CSV, overlay): $out/predictions
training curves and tables: run 'mlflow ui' in $project_dir and open http://127.0.0.1:5000
END
