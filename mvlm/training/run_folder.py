"""A run folder's tokenizer, answers and text encoder's description, which its checkpoints include."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mvlm.checkpoint.description import (
    CONFIG,
    DEEPSPEED,
    DESCRIPTION,
    RUN_JSON,
    STAGES,
    TEXT_ENCODER,
    TOKENIZER,
    described_in,
)
from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.config.schema import Data, Task
from mvlm.data.samples.answers import frequent_answers, save_answers
from mvlm.data.samples.labelled import ANSWERS, SENTENCES
from mvlm.data.samples.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from mvlm.data.shards.columns import Row
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist
from mvlm.runtime.log import log
from mvlm.training.build import TRAINED, tokenizer_source
from mvlm.training.checkpoint.resume import Start


def prepare_tokenizer(
    data: Data, text: str, task: Task, run: Path, mixture: Mixture, start: Start, group: FolderGroup
) -> PreTrainedTokenizerBase:
    """The run's tokenizer, saved in its folder: the checkpoint's on resume, else the encoder's own, given or trained.

    If the task is to answer questions, the answers to choose among are saved beside it. On resume the text encoder's
    description is put into the folder as well.

    Args:
        text: the text encoder's name.

    Raises:
        UserError: the folder cannot be written, or no answer is frequent enough.
    """
    folder = run / TOKENIZER
    if dist.rank() == 0:
        _make_folder(run)
        try:
            if start.checkpoint and start.resumes:
                restore_description(start.checkpoint, run)
            else:
                source = tokenizer_source(data, text, start)
                texts = _texts(task, mixture) if source == TRAINED else None
                save_tokenizer(train_tokenizer(texts, data.vocabulary) if texts else load_tokenizer(source), folder)
                if task.name == "vqa":
                    save_answers(find_answers(task, mixture), folder / ANSWERS)
        except OSError as error:
            raise cannot_write(str(folder), error, "free some room or set run.dir") from None
    dist.barrier()
    if not group.is_whole:
        for kind in (TOKENIZER, TEXT_ENCODER) if start.resumes else (TOKENIZER,):
            _copy_to_groups(run / kind, group)
    return load_tokenizer(str(folder))


def restore_description(checkpoint: Path, run: Path) -> None:
    """Make a run folder's tokenizer and text encoder's description those of a checkpoint, of this or another run.

    A warning says what differed from the run's own checkpoint.
    """
    source = described_in(checkpoint)
    if source == run:
        return
    mended = []
    for kind in (TOKENIZER, TEXT_ENCODER):
        (run / kind).mkdir(exist_ok=True)
        wanted = {path.name: path.read_bytes() for path in (source / kind).iterdir()}
        found = {path.name: path.read_bytes() for path in (run / kind).iterdir()}
        for name in found.keys() - wanted.keys():  # it might change how text is read
            mended.append(f"{kind}/{name} was added")
            (run / kind / name).unlink()
        for name in (name for name in wanted if found.get(name) != wanted[name]):
            mended.append(f"{kind}/{name} was {'different' if name in found else 'missing'}")
            (run / kind / name).write_bytes(wanted[name])
    if mended and checkpoint.parent.parent == run:
        log.warning(f"In {run} {', '.join(mended)}: restored from {checkpoint.name}, which the run was trained with.")


def read_description(run: Path) -> dict[str, bytes]:
    """What a checkpoint includes from the run folder, by its name in both."""
    files = [run / CONFIG, run / DEEPSPEED, run / RUN_JSON, *(run / TOKENIZER).iterdir()]
    files += [run / STAGES] if (run / STAGES).exists() else []
    named = {str(path.relative_to(run)): path for path in (*files, *(run / TEXT_ENCODER).iterdir())}
    return {name: path.read_bytes() for name, path in sorted(named.items()) if DESCRIPTION.fullmatch(name)}


def _texts(task: Task, mixture: Mixture) -> Iterator[str]:
    """All that the text encoder will read."""
    for content in _sound(mixture):
        yield from SENTENCES[task.name](content.own) if task.is_labelled else content.captions


def _sound(mixture: Mixture) -> Iterator[Row]:
    """The undamaged rows; the others are reported."""
    return mixture.sound(range(len(mixture)), lambda error: log.warning(f"Left out: {error}"))


def find_answers(task: Task, mixture: Mixture) -> tuple[str, ...]:
    """The answers to choose among: the frequent ones of the data.

    Raises:
        UserError: no answer is frequent enough, or a question has none.
    """
    answers = frequent_answers(_answered(mixture), task.answer_minimum)
    if not answers:
        raise UserError(
            f"No answer is the majority answer to {task.answer_minimum} questions of data.train: lower "
            "task.answer_minimum, or give more data."
        )
    return answers


def _answered(mixture: Mixture) -> Iterator[Sequence[str]]:
    """What people answered to each question."""
    for content in _sound(mixture):
        if not content.own["answers"]:
            raise UserError(
                f"Question {content.key} of data.train has no answers, as VQA's test questions have none: "
                "leave their shards out, or shard with --annotations."
            )
        yield content.own["answers"]


def _copy_to_groups(folder: Path, group: FolderGroup) -> None:
    """Copy the files of rank 0's folder to every node that has a run folder of its own."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} if dist.rank() == 0 else {}
    for name, content in dist.broadcast_object(files).items():
        if group.leads and dist.rank():
            _make_folder(folder)
            try:
                (folder / name).write_bytes(content)
            except OSError as error:
                raise cannot_write(str(folder), error, "free some room or set run.dir") from None
    dist.barrier()


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run folder {run} cannot be made ({error}): set run.dir to a folder you can write to."
        ) from None
