#!/usr/bin/env bash
# Trains the weights in resources/weights, as they were trained. Safe to stop and start again (--resume).
#   .ci/train_weights.sh [s3rnet|csakd] [FOLDER]
# What is left out is what .ci/learned_table.py measures on: three AVIRIS scenes and every other sensor but CAVE's.
set -euo pipefail
cd "$(dirname "$0")/.."
method=${1:-s3rnet}
folder=${2:-build/weights/$method}
data=${HYPERSHARP_DATA:-../shared/data}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
resume=()
[ -f "$folder/state.safetensors" ] && resume=(--resume)
exec nice -n 19 .venv/bin/python -m hypersharp train --cubes "$data/cubes" --method "$method" -o "$folder" "${resume[@]}" \
    --steps "${STEPS:-1500}" --batch "${BATCH:-1}" --seed 1029 --patience 0 --progress json \
    --leave-out aviris_abu_urban-4 --leave-out aviris_jasper_ridge --leave-out aviris_moffett \
    --leave-out rosis_pavia_bridge --leave-out enmap_potsdam --leave-out neon_sjer_1m \
    --validate-on aviris_abu_airport-3 --validate-on aviris_abu_beach-2
