"""Find images in an index made by `mvlm index`, by a sentence or by an image.

examples:
  mvlm search corpus.index --checkpoint runs/tiny --text "a red circle" --out found
  mvlm search corpus.index --checkpoint runs/tiny --image cat.jpg --top 10 --json found.json

For a sentence, the first results are re-ranked by ITM and ITC together, which reads their images from the shards;
--rerank 0 keeps ITC's order.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.output import require_no_folder, write_json, write_picture
from mvlm.cli.places import require_files, require_index
from mvlm.errors import UserError
from mvlm.runtime.log import log

if TYPE_CHECKING:
    import torch

    from mvlm.model.maskvlm import MaskVLM
    from mvlm.pretrained.runs import Loaded
    from mvlm.search.find import ImageIndex, SearchHit

SHOWN = 200
"""Characters of a caption that are printed; the JSON has all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="a folder made by `mvlm index`")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="the run or checkpoint that made the index")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", metavar="TEXT", help="a sentence")
    asked.add_argument("--image", type=Path, metavar="FILE", help="an image file")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of images to show (default: 5)")
    parser.add_argument(
        "--rerank", type=int, default=32, metavar="K", help="results for a sentence that ITM re-ranks (default: 32)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the images found to this folder")


def run(args: argparse.Namespace) -> int:
    """Search, print, and write the requested files; returns the exit code.

    Raises:
        UserError: the index or its shards cannot be used, or a file cannot be written.
    """
    if args.top < 1 or args.rerank < 0:
        raise UserError(f"--top is {args.top} and --rerank {args.rerank}: give --top 1 or more, --rerank 0 or more.")
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_index(args.index)
    require_files([args.image] if args.image else [])
    require_no_folder(args.json, "--json")

    from mvlm.predict.prediction import file_name, printable
    from mvlm.pretrained.runs import load_run
    from mvlm.runtime import dist
    from mvlm.search.find import ImageIndex

    device = dist.device()
    loaded = load_run(args.checkpoint, device)
    index = ImageIndex(args.index, loaded)
    found = _find(args, index, loaded, device)
    print(printable(args.text or args.image))
    for each in found:
        print(_line(each))
    if args.out:
        for number, each in enumerate(found):
            name = file_name(number, Path(each.key.replace("/", "_")))
            write_picture(args.out / name, index.picture(each.image))
    answers = [dataclasses.asdict(each) for each in found]
    image = str(args.image) if args.image else None
    write_json(args.json, {"text": args.text, "image": image, "step": loaded.step, "found": answers})
    return 0


def _find(
    args: argparse.Namespace, index: ImageIndex, loaded: Loaded[MaskVLM], device: torch.device
) -> list[SearchHit]:
    import torch

    from mvlm.data.images.decode import Decoded
    from mvlm.data.images.transforms import eval_view
    from mvlm.data.samples.pictures import read_picture
    from mvlm.search.find import find_by_image, find_by_sentence

    if args.image is None:
        if cut := index.reading[0].cut_warning([args.text]):
            log.warning(cut)
        return find_by_sentence(index, loaded, args.text, args.top, args.rerank, device)
    view_CHW = eval_view(Decoded(read_picture(args.image)), loaded.blueprint.model.image_size)
    return find_by_image(index, loaded, torch.from_numpy(view_CHW)[None], args.top, device)


def _line(found: SearchHit) -> str:
    from mvlm.predict.prediction import printable

    match = "" if found.match is None else f"  match {found.match:6.1%}"
    place = f"{found.shard} row {found.row} (key {found.key!r})"
    caption = found.caption if len(found.caption) <= SHOWN else f"{found.caption[:SHOWN]} …"
    return f"  similarity {found.similarity:+.3f}{match}  {printable(place)}  {printable(caption)}"
