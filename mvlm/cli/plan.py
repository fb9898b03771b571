"""Calculate a run's size, memory, time and communication before it starts, or what making its data from links takes.

examples:
  mvlm plan mvlm/configs/base.toml --deepspeed_config ds_configs/zero1.json --gpu h100
  mvlm plan mvlm/configs/huge.toml --deepspeed_config ds_configs/zero3.json --gpu h100 --nodes 8 train.recompute=1
  mvlm plan run.toml --deepspeed_config ds_configs/fp16.json --gpu v100 --json plan.json train.micro_batch=auto
  mvlm plan mvlm/configs/huge.toml --deepspeed_config ds_configs/zero2.json --gpu h100 --choose
  mvlm plan data --links 1000000000 --nodes 8 --cores 64 --stored-kb 40

Needs no GPU, no data and no network. docs/plan.md says how each figure is derived.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvlm.config.schema import Config
    from mvlm.estimate.cards import Card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "mvlm plan RUN.toml --deepspeed_config JSON --gpu NAME [--nodes N] [--gpus-per-node N] [--pairs N] "
        "[--mfu SHARE] [--choose] [--json FILE] [key=value ...]\n"
        "       mvlm plan data --links N [--nodes N] [--cores N] [...] [--json FILE]"
    )
    parser.add_argument("config", metavar="RUN.toml", help="or data, to plan making shards from a table of links")
    parser.add_argument("--deepspeed_config", "--deepspeed-config", metavar="JSON")
    parser.add_argument("--gpu", metavar="NAME", help="such as h100, a100-40gb, v100")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=4_000_000,
        metavar="N",
        help="pairs per epoch if data.train is not given (default: 4000000)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.45,
        metavar="SHARE",
        help="share of the peak that matrix products reach (default: 0.45)",
    )
    parser.add_argument(
        "--choose", action="store_true", help="also find the fastest ZeRO stage, hpZ, layers split and recomputation"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it to this file")
    _add_data_arguments(parser)
    parser.set_defaults(takes_overrides=True)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    from mvlm.estimate.links import LinkTablePlan as Asked
    from mvlm.estimate.links import ScoringPlan as Scoring

    data = parser.add_argument_group("mvlm plan data: assumptions about the links, and prices of the machines")
    given: tuple[tuple[str, type, float, str], ...] = (
        ("cores", int, Asked.cores, "hardware threads of a node"),
        ("alive", float, Asked.alive, "share of the links that lead to an image"),
        ("image-kb", float, Asked.image_kb, "kilobytes of an image as downloaded"),
        ("megapixels", float, Asked.megapixels, "megapixels of an image as downloaded"),
        ("stored-kb", float, Asked.stored_kb, "kilobytes of an image in the shards; 0: as downloaded"),
        ("seconds", float, Asked.seconds, "seconds per request, time-outs included"),
        ("connections", int, Asked.connections, "downloads at a time, of one process per hardware thread"),
        ("gbit", float, Asked.gbit, "gigabits per second that a node downloads"),
        ("encryption-ms", float, Asked.encryption_ms, "CPU time of a link for TLS and the look-up of its host"),
        ("core-hour", float, Asked.core_hour, "price of a hardware thread for an hour"),
        ("gb-month", float, Asked.gb_month, "price of a gigabyte stored for a month"),
    )
    scoring: tuple[tuple[str, type, float, str], ...] = (
        ("score-gpus", int, 0, "GPUs that score the shards; 0: scoring is not planned"),
        ("score-rate", float, Scoring.pairs_per_s, "pairs per second that a GPU scores"),
        ("clusters", int, Scoring.clusters, "clusters to make of the scored rows; 0: none"),
        ("kept", float, Scoring.kept, "share of the pairs that data.where keeps"),
        ("gpu-hour", float, Scoring.gpu_hour, "price of a GPU for an hour"),
    )
    data.add_argument("--links", type=int, default=0, metavar="N", help="rows of the table")
    for name, kind, default, words in (*given, *scoring):
        data.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{words} (default: {default:g})")


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns the exit code.

    Raises:
        UserError: the configuration is wrong, or names something unknown.
    """
    if args.config == "data":
        return _plan_data(args)
    _check_options(args)
    from mvlm.cli.output import write_json
    from mvlm.cli.places import require_shards
    from mvlm.config.load import load_config, read_stages
    from mvlm.config.stages import make_stages
    from mvlm.estimate.cards import find_card
    from mvlm.training.zero.json_file import read_deepspeed_json

    card, base = find_card(args.gpu), load_config(args.config, args.overrides)
    content = read_deepspeed_json(args.deepspeed_config)
    require_shards(base.data.train)  # the last check before imports that take seconds

    from mvlm.estimate.choice import choice_text
    from mvlm.estimate.text import as_text
    from mvlm.training.fit.stages import checked

    stages = checked(make_stages(base, read_stages(args.config), args.config))
    plans = []
    for number in range(len(stages)):
        plans.append(_plan_stage(args, stages.config(number), content, card))
        if not stages.is_all:
            if number:
                print()
            print(stages.title(number))
        print(as_text(plans[-1]) + (choice_text(plans[-1]["choice"]) if args.choose else ""), end="")
    if stages.is_all:
        write_json(args.json, plans[0])
        return 0
    total = {key: sum(plan[key] for plan in plans) for key in ("steps", "hours", "gpu_hours")}
    print(
        f"\nall stages     {total['steps']:,} steps: {total['hours']:,.1f} hours, {total['gpu_hours']:,.0f} GPU-hours"
    )
    write_json(args.json, total | {"stages": plans})
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from mvlm.errors import UserError

    if not (args.deepspeed_config and args.gpu):
        raise UserError("mvlm plan RUN.toml needs --deepspeed_config JSON and --gpu NAME: see mvlm plan --help.")
    for name, value in (("--nodes", args.nodes), ("--gpus-per-node", args.gpus_per_node), ("--pairs", args.pairs)):
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more.")
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu is {args.mfu:g}: give a share above 0 and at most 1, such as 0.45.")


def _plan_stage(args: argparse.Namespace, config: Config, content: dict[str, Any], card: Card) -> dict[str, Any]:
    """The plan of a run or of one of its stages, as JSON."""
    from mvlm.data.shards.mixture import training_mixture
    from mvlm.estimate.choice import choose
    from mvlm.estimate.count import FakeModel
    from mvlm.estimate.encoders import build_without_weights
    from mvlm.estimate.plan import Planner, Request
    from mvlm.estimate.text import as_json
    from mvlm.training.parallelize import freeze

    corpus = training_mixture(config.data, config.task.corpus).per_epoch if config.data.train else args.pairs
    request = Request(
        train=config.train,
        optim=config.optim,
        content=content,
        names=(args.deepspeed_config, args.config),
        card_name=args.gpu.lower(),
        card=card,
        nodes=args.nodes,
        per_node=args.gpus_per_node,
        corpus=corpus,
        mfu=args.mfu,
    )
    built = build_without_weights(config.blueprint, config.data)
    freeze(built, config.train.freeze)
    planner = Planner(request, FakeModel(built, config.data, optim=config.optim))
    return as_json(planner) | ({"choice": choose(planner)} if args.choose else {})


def _plan_data(args: argparse.Namespace) -> int:
    from dataclasses import fields

    from mvlm.cli.output import write_json
    from mvlm.errors import UserError
    from mvlm.estimate.links import LinkTablePlan, ScoringPlan, links_text, plan_links, plan_scoring, scoring_text

    if args.links < 1:
        raise UserError(f"--links is {args.links}: give mvlm plan data the number of rows of your table.")
    given = {field.name: getattr(args, field.name) for field in fields(LinkTablePlan)}
    none_or_more = {"stored_kb", "encryption_ms", "core_hour", "gb_month", "score_gpus", "clusters", "gpu_hour"}
    for name in (*given, "score_gpus", "score_rate", "clusters", "kept", "gpu_hour"):
        value = getattr(args, name)
        if name in ("alive", "kept"):
            holds, wanted = 0 < value <= 1, "a share above 0 and at most 1"
        elif name in none_or_more:
            holds, wanted = value >= 0, "0 or more"
        else:
            holds, wanted = value > 0, "a number above 0"
        if not holds:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}: give {wanted}.")
    if args.overrides:
        raise UserError(f"mvlm plan data takes no setting {args.overrides[0]}: it has only options.")
    plan = plan_links(LinkTablePlan(**given))
    print(links_text(plan), end="")
    if args.score_gpus:
        asked = ScoringPlan(args.score_gpus, args.score_rate, args.clusters, kept=args.kept, gpu_hour=args.gpu_hour)
        plan["scoring"] = plan_scoring(plan["images"], asked)
        print(scoring_text(plan["scoring"]), end="")
    write_json(args.json, plan)
    return 0
