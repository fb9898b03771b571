"""`python -m data_tools`: make, check and describe shard folders."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from data_tools import commands
from data_tools.engines.local import cores
from mvlm.errors import UserError

EXAMPLES = """examples:
  python -m data_tools shard folder photos/ --out shards/photos
  python -m data_tools shard folder examples/emoji.tar --split train=0.88,eval=0.12 --split-by group --out shards/emoji
  python -m data_tools shard webdataset cc3m/*.tar --workers 16 --out shards/cc3m
  python -m data_tools synth --task caption --count 8400 --seed 0 --split train=0.95,eval=0.05 --out shards/shapes
  python -m data_tools verify shards/cc3m
  python -m data_tools stats shards/cc3m --json
  python -m data_tools tokenizer shards/emoji/train --vocab 4096 --out tokenizer.json

`python -m data_tools COMMAND --help` says more of each.
"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m data_tools", description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    subs = top.add_subparsers(metavar="COMMAND", required=True)

    shard = subs.add_parser("shard", help="make shards of a source", epilog=EXAMPLES, formatter_class=raw)
    shard.add_argument(
        "source",
        choices=commands.SOURCE_NAMES,
        help="folder: captions.jsonl and images, or a tar of both; webdataset: tars",
    )
    shard.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    shard.add_argument("--workers", type=_positive, default=cores(), help="decoding processes (default: all cores)")
    shard.set_defaults(run=commands.shard_source)
    _add_writing(shard)

    synth = subs.add_parser("synth", help="make shards of synthetic scenes", epilog=EXAMPLES, formatter_class=raw)
    synth.add_argument("--task", choices=commands.TASK_NAMES, required=True)
    synth.add_argument("--count", type=_positive, required=True, help="distinct scenes")
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(run=commands.synth, workers=1)
    _add_writing(synth)

    verify = subs.add_parser("verify", help="read and decode everything; exit 1 on damage")
    verify.add_argument("shards", type=Path, metavar="SHARDS")
    verify.add_argument("--workers", type=_positive, default=cores(), help="decoding processes (default: all cores)")
    verify.set_defaults(run=commands.verify)

    stats = subs.add_parser("stats", help="counts and distributions")
    stats.add_argument("shards", type=Path, metavar="SHARDS")
    stats.add_argument("--json", action="store_true", help="print JSON instead of a table")
    stats.set_defaults(run=commands.stats)

    tokenizer = subs.add_parser("tokenizer", help="train a byte-level BPE on the captions")
    tokenizer.add_argument("shards", type=Path, nargs="+", metavar="SHARDS")
    tokenizer.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    tokenizer.add_argument("--vocab", type=_positive, default=8192, help="most tokens (default: 8192)")
    tokenizer.set_defaults(run=commands.tokenizer)
    return top


def _add_writing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder to make")
    command.add_argument("--split", help="shares by name, for example train=0.88,eval=0.12: one folder each in SHARDS")
    command.add_argument(
        "--split-by", default="key", metavar="FIELD", help="field whose equal values stay together (default: the id)"
    )
    command.add_argument("--shard-mb", type=_megabytes, default=256, help="image megabytes a shard (default: 256)")
    command.add_argument(
        "--tolerate", type=_share, default=0.5, metavar="SHARE", help="records that may be dropped (default: 0.5)"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _megabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error}: check that file and its disk.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: nothing was left half-made.", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    sys.exit(main())
