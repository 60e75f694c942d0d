#!/usr/bin/env bash
# From nothing to a distilled student: installs, prepares photographs, lets the networks that ship teach a student with
# MTKD, trains the same student without them, then writes results/quickstart/{table.md,comparison.png,curves.png}; and
# set5.md if datasets/Set5 is there.
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

OUT=results/quickstart
OPTIONS=options/quickstart
PHOTOS=datasets/quickstart
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"   # one GPU is enough here; without one, the CPU serves
started=$SECONDS
step=0
steps=3
mkdir -p "$OUT"

# run NAME COMMAND...: its output in NAME.log, one line here
run() {
    step=$((step + 1))
    local name=$1 log="$OUT/$1.log" begun=$SECONDS
    shift
    printf '[%s/%s] %-18s ' "$step" "$steps" "$name"
    "$@" >"$log" 2>&1 || { echo "failed; the end of $log:"; tail -n 15 "$log"; exit 1; }
    printf '%4d s' "$((SECONDS - begun))"
    local psnr
    psnr=$(grep -oP '# psnr: \K[0-9.]+' "$log" | tail -n 1) && printf '   PSNR-Y %s dB' "$psnr"
    echo
}

train() {
    local force=()
    if [ "$LENGTH" = smoke ]; then
        force=(--force_yml train:total_iter=6 val:val_freq=3 logger:print_freq=1 logger:save_checkpoint_freq=6)
    fi
    run "$1" python basicsr/train.py -opt "$OPTIONS/train_$1.yml" "${force[@]}"
}

python scripts/quickstart_photos.py --out "$PHOTOS"
rm -rf "$PHOTOS"/train/*_cache_*  # what the teachers make of the photographs is made anew, as it takes seconds
run teachers python scripts/cache_teachers.py -opt "$OPTIONS/train_mtkd.yml"
train mtkd
train scratch

python scripts/quickstart_report.py --out "$OUT"
if [ -d datasets/Set5/LRbicx4 ]; then
    python scripts/evaluate.py bicubic "student, scratch=$OPTIONS/train_scratch.yml" "student, MTKD=$OPTIONS/train_mtkd.yml" \
        "teacher target=$OPTIONS/train_mtkd.yml:target" --set datasets/Set5 --repeats 0 --out "$OUT/set5.md" "$OUT/set5.json"
    cat "$OUT/set5.md"
fi
echo "$((SECONDS - started)) s after installation"
