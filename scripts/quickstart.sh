#!/usr/bin/env bash
# From nothing to a distilled student: installs, prepares photographs, trains three small teachers, their aggregator,
# a student with MTKD and the same student without, then writes results/quickstart/{table.md,comparison.png,curves.png}.
# usage: bash scripts/quickstart.sh [--smoke]     --smoke: a few steps each, to see that everything runs
set -euo pipefail

LENGTH=full
case "${1:-}" in
    '') ;;
    --smoke) LENGTH=smoke ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "error: unknown argument $1; try --help" >&2; exit 2 ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$ROOT"
python -c 'import skimage' 2>/dev/null || python -m pip install --quiet scikit-image

python scripts/quickstart_photos.py --out datasets/quickstart

started=$SECONDS
step=0
train() {
    step=$((step + 1))
    local name=$1 log="results/quickstart/$1.log" force=()
    if [ "$LENGTH" = smoke ]; then
        force=(--force_yml train:total_iter=6 val:val_freq=3 logger:print_freq=1 logger:save_checkpoint_freq=6)
    fi
    mkdir -p results/quickstart
    printf '[%s/6] %-20s ' "$step" "$name"
    local begun=$SECONDS
    # one GPU is enough here; without one, the CPU serves
    CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" \
        python basicsr/train.py -opt "options/quickstart/train_$name.yml" "${force[@]}" >"$log" 2>&1 ||
        { echo "failed; the end of $log:"; tail -n 15 "$log"; exit 1; }
    printf '%4d s   PSNR-Y %s dB\n' "$((SECONDS - begun))" "$(grep -oP '# psnr: \K[0-9.]+' "$log" | tail -n 1)"
}

for name in teacher_edsr teacher_rcan teacher_swinir aggregator mtkd scratch; do
    train "$name"
done
echo "trained in $((SECONDS - started)) s"

python scripts/quickstart_report.py --out results/quickstart
