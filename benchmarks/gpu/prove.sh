#!/usr/bin/env bash
# The proof that mvlm works on a GPU, and how fast: one command, one GPU, at most nine minutes.
#
#     bash benchmarks/gpu/prove.sh --out FOLDER                    # with the Python that is there
#     bash benchmarks/gpu/prove.sh --out FOLDER --wheels WHEELS    # and wheels of what it lacks, from environment.sh
#     bash benchmarks/gpu/prove.sh --out FOLDER --rehearse         # the same code on a CPU, at tiny sizes
#     bash benchmarks/gpu/prove.sh --out FOLDER --albef CHECKOUT   # with ALBEF's own step too
#
# In turn: the trainer, every kernel's parity, the step at full size, its profile, the contrastive kernels at 65,536
# pairs, and other people's steps. Each part ends at a fixed time, gets the time that those before it left, and runs
# even if they failed. FOLDER gets parts.jsonl, a file of lines for each part, and log.txt: eight files, written as the
# parts run. `python benchmarks/gpu/page.py FOLDER` makes a page of them. PROOF_PYTHON names another Python.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

out="" wheels="" albef="" rehearse=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        --wheels) wheels=$(cd "$2" && pwd) || exit 2; shift 2 ;;
        --albef) albef=$(cd "$2" && pwd) || exit 2; shift 2 ;;
        --rehearse) rehearse=yes; shift ;;
        *) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
if [ -z "$out" ]; then
    echo "benchmarks/gpu/prove.sh: give --out FOLDER" >&2
    exit 2
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PROOF_PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
began=$SECONDS epoch=$(date +%s) failed=0
rm -f "$out"/{parts,trainer,kernels,step,profile,large_batch,peers}.jsonl "$out/log.txt"

stretch=1 size=full pairs="128 64 256" global=65536 own="128 1024" peers="without_compilation vit albef_like" steps=10 tiny=""
if [ -n "$rehearse" ]; then
    # A small, shared CPU: two hours at most.
    stretch=14 size=tiny pairs="4" global=512 own="128" steps=1 tiny=--rehearse
    export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
fi
[ -z "$albef" ] || peers+=" albef"

# On the path, brought packages come after this checkout and before the machine's own; launchers pass PYTHONPATH on.
if [ -n "$wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" \
        "$wheels"/*.whl >>"$out/log.txt" 2>&1 || failed=1
fi
export PYTHONPATH=$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# part NAME SECONDS COMMAND...: run a part that ends at the latest SECONDS after the proof began
part() {
    local name=$1 end=$(($2 * stretch)) start=$SECONDS
    shift 2
    echo "== $name" >>"$out/log.txt"
    PROOF_UNTIL=$((epoch + end)) timeout --kill-after=5 $((began + end + 3 - SECONDS)) "$@" >>"$out/log.txt" 2>&1
    local status=$?
    [ $status -eq 0 ] || failed=1
    echo "{\"part\": \"$name\", \"seconds\": $((SECONDS - start)), \"status\": $status}" | tee -a "$out/parts.jsonl"
}

# shellcheck disable=SC2086  # lists of words
{
    part machine 20 "$python" benchmarks/gpu/machine.py "$out/parts.jsonl"
    part survey 40 "$python" -m mvlm kernels
    part trainer 160 "$python" benchmarks/gpu/trainer.py "$out/trainer.jsonl" --work "$work/trainer" $tiny
    part kernels 215 "$python" benchmarks/gpu/parity.py "$out/kernels.jsonl" --size $size
    part step 415 "$python" benchmarks/gpu/full_step.py "$out/step.jsonl" --size $size --pairs $pairs
    part profile 445 "$python" benchmarks/gpu/by_kind.py "$out/profile.jsonl" --size $size
    part large_batch 475 "$python" benchmarks/gpu/large_batch.py "$out/large_batch.jsonl" --global $global --own $own
    part peers 530 "$python" benchmarks/gpu/peers.py "$out/peers.jsonl" --size $size --steps $steps --variants $peers \
        ${albef:+--albef "$albef"}
}
# Far less than may be brought back.
tail -c 4000000 "$out/log.txt" >"$work/log.txt" && cp "$work/log.txt" "$out/log.txt"
"$python" benchmarks/gpu/page.py "$out"
echo "all: $((SECONDS - began)) s"
exit $failed
