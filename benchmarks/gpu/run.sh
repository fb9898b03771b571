#!/usr/bin/env bash
# All measurements that want a GPU, on one H100 in at most 10 minutes:
#
#     bash benchmarks/gpu/run.sh --out FOLDER                     # with the Python that is there
#     bash benchmarks/gpu/run.sh --out FOLDER --wheels WHEELS     # with what wheels.sh gathered, without network
#     bash benchmarks/gpu/run.sh --out FOLDER --rehearse        # the same flow at tiny sizes on a CPU, in minutes
#
# In turn: the environment, `mvlm kernels`, the kernels' tests, each kernel timed, the ladder of benchmarks/step, and
# memory by kind. Every part has its share of the time and writes to FOLDER as it goes; the next one runs whether or
# not it ended well. Given the same folder again, the ladder goes on where it was.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

out="" wheels="" rehearse=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        --rehearse) rehearse=yes; shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
if [ -z "$out" ]; then
    echo "benchmarks/gpu/run.sh: give --out FOLDER" >&2
    exit 2
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
began=$SECONDS failed=0

# part NAME SECONDS COMMAND... : its output goes to FOLDER/NAME.txt
part() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1
    local status=$?
    [ $status -eq 0 ] || failed=1
    echo "$name: $((SECONDS - start)) s, exit status $status" | tee -a "$out/parts.txt"
    [ $status -eq 0 ] || tail -n 5 "$out/$name.txt"
}

python=python3
if [ -n "$wheels" ]; then
    python3 -m venv "$out/venv"
    part install 150 "$out/venv/bin/python" -m pip install --no-index --find-links "$wheels" \
        -r requirements.txt triton ninja
    python=$out/venv/bin/python
fi
export PYTHONPATH=$PWD TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

if [ -n "$rehearse" ]; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
    size=tiny precisions="fp32" variants="naive pruned without_compilation"
    ladder_seconds=150 tests="tests/kernels/test_layer_norm.py tests/kernels/test_dispatch.py"
else
    size=full precisions="bf16"
    variants="naive kernels pruned sdpa packed masked_heads compiled vit albef_like flava"
    variants+=" without_compilation without_pruning without_packing without_masked_words"
    ladder_seconds=270 tests="tests/kernels"
fi

part environment 60 "$python" -m torch.utils.collect_env
part kernels 60 "$python" -m mvlm kernels
# shellcheck disable=SC2086  # lists of words
part tests 90 "$python" -m pytest -q -p no:cacheprovider $tests
part timed-kernels 45 "$python" benchmarks/gpu/time_kernels.py --size "$size" --results "$out/kernels-$size.jsonl"
# shellcheck disable=SC2086
part ladder "$ladder_seconds" "$python" benchmarks/step --size "$size" --precision $precisions --variants $variants \
    --rounds 1 --steps 5 --results "$out"
part memory 60 "$python" benchmarks/step/memory.py --size "$size" --results "$out"
echo "all: $((SECONDS - began)) s" | tee -a "$out/parts.txt"
exit $failed
