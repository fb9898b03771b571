#!/usr/bin/env bash
# Evaluate a model of icons: examples/icons/evaluate.sh [RUN] [ROWS]. It prints tables, and writes them as JSON, with
# pictures of reconstructions, to RUN/evaluation. It takes the first ROWS of each split, or all if ROWS is left out.
#
# Retrieval among icons of held-out concepts, held-out designers, and both; foils by opposites and by styles; masked words
# and patches, with the right other modality, with none, and with a wrong one.
set -euo pipefail
run=${1:+$(realpath -m -- "$1")} shards=${SHARDS:+$(realpath -m -- "$SHARDS")} # from where the command was typed
cd "$(dirname "$0")/../.."
run=${run:-runs/icons} rows=${2:-0}
shards=${shards:-shards/icons} out=$run/evaluation
mkdir -p "$out"

evaluate() { # NAME TASK SHARDS OPTIONS...: skips what has been measured
  local file=$out/$1.json task=$2 data=$3
  shift 3
  [ ! -e "$file" ] || { echo "$file is there already: delete it to measure again."; return; }
  printf '\n== %s\n' "$file"
  python -m mvlm evaluate "$task" --checkpoint "$run" --data "$shards/$data" --limit "$rows" --json "$file" "$@"
}

for split in concepts designers both; do
  evaluate "retrieval_$split" retrieval "pairs/$split" --rerank 16 --equal-captions
done
for kind in opposites styles; do
  evaluate "foils_$kind" foils "foils/$kind"
done
for split in concepts designers; do
  evaluate "reconstruction_$split" reconstruction "pairs/$split" --pictures "$out/pictures_$split"
done
