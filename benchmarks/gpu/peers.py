"""Other people's steps compared with ours in bf16: python benchmarks/gpu/peers.py FILE [--albef CHECKOUT]

It runs one round of trials of benchmarks/step; each is a line of FILE.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step import ladder
from benchmarks.step.sizes import SIZES
from benchmarks.step.trial import VARIANTS


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--size", choices=SIZES, default="full")
    words.add_argument("--variants", choices=VARIANTS, nargs="+", default=["without_compilation", "vit", "albef_like"])
    words.add_argument("--steps", type=int, default=10)
    words.add_argument("--albef", type=Path)
    given = words.parse_args()
    ladder.run(given.file, given.size, given.variants, ["bf16"], 1, given.steps, given.albef)
    return int(any("error" in line for line in ladder.read(given.file)))


if __name__ == "__main__":
    sys.exit(main())
