"""Try a trained model on your own images and sentences.

examples:
  mvlm predict captions --checkpoint runs/tiny --images cat.jpg --sentences "a cat" "a dog" "a red bus"
  mvlm predict images --checkpoint runs/tiny --images holiday/ --sentences "the sea at night" --top 3
  mvlm predict words --checkpoint runs/tiny --images scene.png --sentences "a [MASK] circle" --out pictures
  mvlm predict patches --checkpoint runs/tiny --images scene.png --sentences "a red circle" --out pictures
  mvlm predict answer --checkpoint runs/vqa --images scene.png --sentences "what colour is the circle?"
  mvlm predict judge --checkpoint runs/entailment --images scene.png --sentences "there is a red circle"
  mvlm predict captions --checkpoint runs/tiny --images holiday/ --sentences-file captions.txt --json best.json

--images takes files and folders. captions and images compare every image with every sentence; the others pair the first
image with the first sentence and so on, or a single one of either with all of the others. A run fine-tuned for nlvr2
judges a sentence about two images, the left one first. --out draws a picture for each question: where each word attends
in the image or, for patches, the reconstruction.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvlm.checkpoint.description import CONFIG, described_in
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.output import require_no_folder, write_json, write_picture
from mvlm.cli.places import require_files
from mvlm.config.load import load_stored_config
from mvlm.errors import UserError
from mvlm.runtime.log import log

if TYPE_CHECKING:
    import torch

    from mvlm.predict.prediction import Prediction
    from mvlm.pretrained.runs import Loaded

HELP = {
    "captions": "the best sentences for each image",
    "images": "the best images for each sentence",
    "words": "the words behind [MASK] in each sentence, with its image and without",
    "patches": "masked patches of each image, reconstructed with its sentence and without",
    "answer": "a question about each image answered, by a run fine-tuned for vqa",
    "judge": "a statement about each image judged, by a run fine-tuned for entailment or nlvr2",
}

NEEDS: dict[str, Literal["image", "text"]] = {"words": "text", "patches": "image"}
"""The objective without which an answer means nothing; captions and images fall back on ITC alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=list(HELP), help="; ".join(f"{name}: {does}" for name, does in HELP.items()))
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="image files and folders of them")
    parser.add_argument("--sentences", nargs="+", default=[], metavar="TEXT")
    parser.add_argument(
        "--sentences-file", type=Path, metavar="FILE", help="a text file with more sentences, one per line"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of answers to show (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the answers to this file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="draw a picture for each question into this folder")


def run(args: argparse.Namespace) -> int:
    """Answer, print, and write the requested files; returns the exit code.

    Raises:
        UserError: a file is not a picture, the question does not suit the model, or a file cannot be written.
    """
    if args.top < 1:
        raise UserError(f"--top is {args.top}: give 1 or more.")
    sentences = (*args.sentences, *_lines(args.sentences_file))
    if not sentences:
        raise UserError("There is no sentence: give --sentences or --sentences-file.")
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_files(args.images)
    require_no_folder(args.json, "--json")

    from mvlm.data.samples.pictures import find_pictures
    from mvlm.evaluate.retrieval import SearchSettings
    from mvlm.evaluate.untrained import untrained
    from mvlm.predict.choose import ANSWER, JUDGE
    from mvlm.predict.patches import Patches
    from mvlm.predict.prediction import Asked
    from mvlm.predict.search import CAPTIONS, IMAGES
    from mvlm.predict.words import Words
    from mvlm.runtime import dist

    images = tuple(find_pictures(args.images))
    device = dist.device()
    predictions: list[Prediction] = [CAPTIONS, IMAGES, Words(), Patches(), ANSWER, JUDGE]
    prediction = next(each for each in predictions if each.name == args.what)
    loaded = _load(prediction, args.checkpoint, device)
    warning = untrained(loaded.model, NEEDS[args.what]) if args.what in NEEDS else ""
    if warning:
        log.warning(warning)
    search = SearchSettings.of(loaded.eval)
    asked = Asked(images, sentences, args.top, search, draws=args.out is not None)
    answer = prediction.run(loaded, asked, device)
    print(answer.text)
    for name, picture in answer.pictures.items():
        write_picture(args.out / f"{args.what}_{name}", picture)
    write_json(args.json, {"what": args.what, "step": loaded.step, "answers": answer.entries})
    return 0


def _load(prediction: Prediction, checkpoint: str, device: torch.device) -> Loaded[Any]:
    from mvlm.predict.choose import ANSWER, JUDGE, TaskPrediction
    from mvlm.pretrained.runs import load_run, load_task_run

    tuned = load_stored_config(described_in(find_checkpoint(checkpoint)) / CONFIG).task.name
    for other in (ANSWER, JUDGE):
        if tuned in other.tasks and other is not prediction:
            raise UserError(
                f"{checkpoint} was fine-tuned for {tuned}: ask it by `mvlm predict {other.name}`, or give another run."
            )
    if not isinstance(prediction, TaskPrediction):
        return load_run(checkpoint, device)
    return load_task_run(checkpoint, tuned if tuned in prediction.tasks else prediction.tasks[0], device)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give --sentences-file a text file.") from None
    return [line.strip() for line in lines if line.strip()]
