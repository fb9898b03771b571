"""How fast a training step is, from a naive one to ours, and compared with other people's.

python benchmarks/step                                       # small on a CPU, full on a GPU; then the README's table
python benchmarks/step --size small --precision bf16 --variants naive pruned --rounds 3
python benchmarks/step --albef ALBEF                         # with ALBEF's own code, a checkout of salesforce/ALBEF

An interrupted call resumes when the command is repeated. See benchmarks/step/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step import ladder, table
from benchmarks.step.medians import results
from benchmarks.step.plot import draw
from benchmarks.step.sizes import SIZES
from benchmarks.step.trial import OPTIMIZER, PRECISIONS, VARIANTS

README = ladder.FOLDER / "README.md"


def main(words: list[str] | None = None) -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full" if on_gpu else "small")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--variants", choices=[*VARIANTS, OPTIMIZER], nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per trial")
    parser.add_argument("--albef", type=Path, help="a checkout of salesforce/ALBEF")
    parser.add_argument("--results", type=Path, default=ladder.RESULTS, help="the folder for results")
    arguments = parser.parse_args(words)
    if arguments.albef is None and "albef" in arguments.variants:
        parser.error("the variant albef needs --albef")
    variants = arguments.variants or [v for v in [*VARIANTS, OPTIMIZER] if v != "albef" or arguments.albef]
    name = f"{arguments.size}-{'gpu' if on_gpu else 'cpu'}"
    path = arguments.results / f"{name}.jsonl"
    ladder.run(path, arguments.size, variants, arguments.precision, arguments.rounds, arguments.steps, arguments.albef)
    lines = ladder.read(path)
    text = table.markdown(lines)
    draw(results(lines), path.with_suffix(".png"))
    readme, name = README.read_text(encoding="utf-8"), ladder.name_of(path)
    if table.BEGIN.format(name) in readme:
        README.write_text(table.put(readme, name, text), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
