#!/usr/bin/env bash
# Make shards of icons and, beside them, a dictionary of their patches for laptop.toml, a sheet, statistics and credits:
# examples/icons/make.sh [PACKAGE]
# PACKAGE is the archive or folder of the npm package @iconify/json; without it npm fetches the archive (104 MB).
# If interrupted, it resumes when started again.
set -euo pipefail
given=${1:+$(realpath -m -- "$1")} # from where the command was typed
cd "$(dirname "$0")/../.."
OUT=shards/icons
VERSION=2.2.535

package=${given:-$OUT.package/iconify-json-$VERSION.tgz}
if [ ! -e "$package" ]; then
  [ $# -eq 0 ] || { echo "There is nothing at $package: check the path."; exit 1; }
  mkdir -p $OUT.package.part
  npm pack --silent "@iconify/json@$VERSION" --pack-destination $OUT.package.part
  mv $OUT.package.part $OUT.package
fi
[ -e $OUT/pairs ] || python -m data_tools shard iconify "$package" \
  --split train,validation,concepts,designers,both --split-by split --shard-mb 16 --out $OUT/pairs
[ -e $OUT/foils ] || python -m data_tools shard iconify_foils "$package" \
  --split opposites,styles,validation --split-by foils --shard-mb 16 --out $OUT/foils
[ -e $OUT/dictionary.safetensors ] || python -m mvlm dictionary $OUT/pairs/train --out $OUT/dictionary.safetensors
python examples/icons/sheet.py $OUT/pairs $OUT/icons.png
python examples/icons/about.py $OUT/pairs $OUT
