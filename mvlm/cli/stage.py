"""Append a stage to a run, or show the stages of one and how often each has seen its rows.

examples:
  mvlm stage add runs/mine --steps 2000 objectives.image=0 optim.lr=1e-4
  mvlm stage add runs/mine --epochs 3 --name larger model.image_size=288 'data.train=["shards/a", "shards/b"]'
  mvlm stage show runs/mine --rows

`add` uses the settings of the run for the new stage, except those given as key=value. A run that is in progress begins
the stage by itself when its last stage ends; a run that has ended begins it when you enter the command that trained it
again. If the data of the stages differ, each data set continues in its own order: no row is repeated before all others
have been seen. `show --rows` reads the shards: if they have been moved, data.train says where they are now.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive
from mvlm.runtime.wording import counted

if TYPE_CHECKING:
    from mvlm.checkpoint.state import TrainState
    from mvlm.config.schema import Config, Eval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "mvlm stage add RUN (--steps N | --pairs N | --epochs X) [--name NAME] [--continue] [key=value ...]\n"
        "       mvlm stage show RUN [--rows [data.train=PLACES]] [--json]"
    )
    parser.add_argument("action", choices=("add", "show"))
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help="updates of the stage")
    length.add_argument("--pairs", type=positive, metavar="N", help="pairs that the stage sees")
    length.add_argument("--epochs", type=float, metavar="X", help="epochs over the stage's data")
    parser.add_argument("--name", default="", help="the name under which the stage is shown")
    parser.add_argument(
        "--continue",
        dest="continues",
        action="store_true",
        help="extend the schedule of the previous stage over this one",
    )
    parser.add_argument("--rows", action="store_true", help="also count how often each row was seen")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Add a stage or show all; returns the exit code.

    Raises:
        UserError: the folder is not a run's, or the run cannot have this stage.
    """
    if not args.run_folder.is_dir():
        raise UserError(f"There is no run folder {args.run_folder}: give the folder of a run.")
    return _add(args) if args.action == "add" else _show(args)


def _add(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from mvlm.checkpoint.description import CONFIG, DEEPSPEED, RUN_JSON, STAGES, described_in
    from mvlm.checkpoint.integrity import read_state
    from mvlm.checkpoint.layout import find_checkpoint
    from mvlm.cli.train import evaluator
    from mvlm.config.load import LENGTHS, load_stored_config, require_training_data
    from mvlm.config.stages import Stages, draws_alike, make_stages
    from mvlm.config.toml import apply_override
    from mvlm.data.loading.streams import check_drawable
    from mvlm.data.shards.mixture import training_mixture
    from mvlm.runtime.storage import write_durably
    from mvlm.training.checkpoint.resume import Start
    from mvlm.training.fit.planning import rehearse
    from mvlm.training.fit.stages import checked, outline, stored_stages
    from mvlm.training.zero.config import usable_ranks
    from mvlm.training.zero.json_file import read_deepspeed_json, tensor_ranks

    lengths = {key: getattr(args, key) for key in ("steps", "pairs", "epochs") if getattr(args, key) is not None}
    if not lengths:
        raise UserError("A stage needs a length: give --steps, --pairs or --epochs.")
    table: dict[str, Any] = {"name": args.name} if args.name else {}
    table |= {"schedule": "continue"} if args.continues else {}
    for override in args.overrides:
        apply_override(table, override)
    twice = [f"train.{key}" for key in LENGTHS if key in table.get("train", {})]
    if twice:
        raise UserError(f"{twice[0]} is the stage's length, as --{next(iter(lengths))} is: give only the option.")
    table["train"] = table.get("train", {}) | lengths
    checkpoint = find_checkpoint(args.run_folder)
    stored = stored_stages(args.run_folder)
    base = stored.base if stored else load_stored_config(described_in(checkpoint) / CONFIG)
    before = stored or Stages(base, ({},), str(args.run_folder / STAGES))
    added = make_stages(base, [table], f"The stage for {args.run_folder}").tables
    stages = checked(replace(before, tables=(*before.tables, *added), where=f"{args.run_folder} with the new stage"))
    last = stages.config(len(stages) - 1)
    require_training_data(last, "The stage")
    mixture = training_mixture(last.data, last.task.corpus)
    state = read_state(checkpoint)
    check_drawable(state, mixture, base.data, draws_alike(stages))
    described = described_in(checkpoint)
    content = read_deepspeed_json(described / DEEPSPEED)
    facts = json.loads((described / RUN_JSON).read_text(encoding="utf-8"))
    split = tensor_ranks(content)
    parameters = rehearse(last, mixture, Start(checkpoint, resumes=True, own=True), split)
    names = str(described / DEEPSPEED), "the stage"
    _require_deepspeed(names, content, last, parameters, usable_ranks(last.train, facts["world"], split) // split)
    evaluator(last)
    section = outline(replace(stages, tables=added))[-1]
    try:
        write_durably(args.run_folder / STAGES, stages.dump())
    except OSError as error:
        raise UserError(f"{args.run_folder / STAGES} cannot be written ({error}): free some room.") from None
    running = state.stages[-1].number if state.stages else 0
    coming = last if state.step >= facts["steps"] else stages.config(running)
    title = stages.title(len(stages) - 1).capitalize()
    makes = f"{title} of {args.run_folder} will make {counted(section.end, 'update')}."
    print(f"{makes} {_when_it_begins(state, coming.eval)}")
    return 0


def _when_it_begins(state: TrainState, settings: Eval) -> str:
    """A sentence for the user who has appended a stage.

    Args:
        settings: [eval] of the stage that the run would continue with.
    """
    from mvlm.checkpoint.selection import Selector

    selector = Selector.of(settings)
    reason = selector.why_over(state.best) if selector else ""
    if reason:
        return (
            f"The run has ended early, since {reason}: to reach the stage, run the command that trained it with a "
            "larger eval.patience, or 0."
        )
    return (
        "A run in progress begins it by itself; one that has ended begins it when the command that trained it is run "
        "again."
    )


def _require_deepspeed(
    names: tuple[str, str], content: dict[str, Any], stage: Config, parameters: int, replicas: int
) -> None:
    """Raise `UserError` if a stage does not go with the DeepSpeed JSON that the run was last trained with.

    Args:
        replicas: as many of the run's as can divide the stage's batch; it may be resumed on another number.
    """
    from mvlm.decay.branches import OWNED
    from mvlm.training.compilation import is_compiled
    from mvlm.training.zero.config import RunSide, resolve

    content = {key: value for key, value in content.items() if key not in OWNED}
    run = RunSide(names, stage.run.dir, stage.train, stage.optim, replicas, (None, None), parameters)
    is_compiled(stage.train, resolve(content, run))


def _show(args: argparse.Namespace) -> int:
    from mvlm.checkpoint.integrity import read_state
    from mvlm.checkpoint.layout import find_checkpoint
    from mvlm.config.load import config_from_dict
    from mvlm.config.toml import apply_override
    from mvlm.training.fit.stages import stored_stages
    from mvlm.training.ledger import count_seen, ledger

    unknown = [each for each in args.overrides if not (args.rows and each.startswith("data.train="))]
    if unknown:
        raise UserError(f"mvlm stage show takes no setting {unknown[0]}: only data.train, with --rows.")
    table: dict[str, Any] = {}
    for override in args.overrides:
        apply_override(table, override)
    places = config_from_dict(table, "The command line").data.train
    state, stored = read_state(find_checkpoint(args.run_folder)), stored_stages(args.run_folder)
    lines = ledger(state)
    if not lines and not stored:
        raise UserError(f"{args.run_folder} is a run without stages: `mvlm stage add` appends one.")
    if args.rows and lines:
        for line, counted in zip(lines, count_seen(args.run_folder, places), strict=True):
            for drawn, (_, counts) in zip(line["drawn"], counted, strict=True):
                drawn[drawn["of"]] = len(counts)
                drawn["seen"] = {str(times): int((counts == times).sum()) for times in sorted(set(counts.tolist()))}
    # A run that has only just been given stages has recorded none: its steps so far are stage 1.
    lines = lines or [{"stage": 1, "name": "", "steps": [0, state.step], "drawn": []}]
    if args.json:
        print(json.dumps(lines, indent=1))
        return 0
    for line in lines:
        name = f" ({line['name']})" if line["name"] else ""
        print(f"stage {line['stage']}{name}: steps {line['steps'][0]:,} to {line['steps'][1]:,}")
        for drawn in line["drawn"]:
            epochs = (drawn["from"] / drawn["per_epoch"], drawn["to"] / drawn["per_epoch"])
            print(
                f"  {', '.join(drawn['data'])}: draws {drawn['from']:,} to {drawn['to']:,}, epochs {epochs[0]:.2f} to "
                f"{epochs[1]:.2f}, order {drawn['order']}"
            )
            if "seen" in drawn:
                print("    " + ", ".join(f"{n:,} {drawn['of']} {times} times" for times, n in drawn["seen"].items()))
    if stored:
        for number in range(len(lines), len(stored)):
            print(f"{stored.title(number)}: not begun")
    return 0
