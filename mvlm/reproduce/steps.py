"""The steps of a table: the command of each, and whether its product exists already.

A step is done when its product is: shards with their manifest, a checkpoint of the last update, the JSON of an
evaluation of exactly that checkpoint. So a step may also be run elsewhere, such as in a cluster job, and the next `mvlm
reproduce` continues after it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mvlm.checkpoint.description import fingerprint, is_at_end
from mvlm.checkpoint.layout import CHECKPOINTS, find_checkpoint, has_checkpoints, step_name
from mvlm.config.load import load_config
from mvlm.config.schema import Blueprint, Data, Optim, Train
from mvlm.config.shipped import package, shipped
from mvlm.config.toml import as_toml
from mvlm.data.shards.mixture import training_mixture
from mvlm.data.shards.schema import MANIFEST, corpora_in
from mvlm.errors import UserError
from mvlm.report.facts import read_facts, read_json
from mvlm.reproduce.corpora import CORPORA, in_order
from mvlm.reproduce.miniature import RECIPE, RECIPE_OF_FIRST
from mvlm.reproduce.runs import RUNS
from mvlm.reproduce.tables import Evaluation, Table
from mvlm.runtime.chain import ChainStep
from mvlm.training.schedule import schedule_steps

DATA_TOOLS = (sys.executable, "-m", package("data_tools"))


@dataclass(frozen=True)
class Workplace:
    """Where a table is reproduced, and how its runs are launched.

    Attributes:
        data: the folder of the downloaded data sets.
        out: the folder for what is made: shards, runs, results.
        launch: the words before `train` and `evaluate`, such as `deepspeed --module mvlm`.
        overrides: settings for every training run.
        miniature: whether data sets are generated and models tiny.
    """

    data: Path
    out: Path
    launch: tuple[str, ...]
    deepspeed: str
    overrides: tuple[str, ...] = ()
    miniature: bool = False

    @property
    def shards(self) -> Path:
        return self.out / "shards"

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.out / "runs" / self._seeded(name)

    def table(self, name: str) -> Path:
        """The file that a table is written to."""
        return self.out / f"{self._seeded(name)}.json"

    def results(self, evaluation: Evaluation) -> Path:
        return self.out / "results" / f"{self.run(evaluation.run).name}-{evaluation.data}-{evaluation.task}.json"

    def _seeded(self, name: str) -> str:
        """Add a seed given by an override: it has its own runs, results and tables."""
        seeds = [word.partition("=")[2] for word in self.overrides if word.startswith("run.seed=")]
        return f"{name}-seed{seeds[-1]}" if seeds else name

    def fill(self, words: Sequence[str]) -> list[str]:
        """The words of a corpus's command, with the folders filled in."""
        return [word.format(data=self.data, shards=self.shards) for word in words]


@dataclass(frozen=True)
class GenerateStep(ChainStep):
    place: Workplace
    title = "generate the data sets in miniature"

    def words(self) -> list[str]:
        return [*DATA_TOOLS, "miniature", str(self.place.data)]

    def is_done(self) -> bool:
        return self.place.data.exists()


@dataclass(frozen=True)
class ShardStep(ChainStep):
    place: Workplace
    name: str

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"shard {self.name}"

    def words(self) -> list[str]:
        corpus = CORPORA[self.name]
        return [*DATA_TOOLS, *self.place.fill(corpus.words), "--out", str(self.place.shards / self.name)]

    def is_done(self) -> bool:
        return bool(corpora_in(self.place.shards / self.name))


@dataclass(frozen=True)
class TrainStep(ChainStep):
    place: Workplace
    name: str

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{'fine-tune' if RUNS[self.name].start else 'pretrain'} {self.name}"

    def words(self) -> list[str]:
        recipe = str(self.recipe)
        return [*self.place.launch, "train", recipe, "--deepspeed_config", self.place.deepspeed, *self.settings()]

    @property
    def recipe(self) -> Path:
        path = shipped("configs") / f"{RUNS[self.name].recipe}.toml"
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

    def settings(self) -> list[str]:
        """Overrides of the recipe: for the data, for validation after each epoch, and the user's."""
        run, settings = RUNS[self.name], self._settings()
        if run.validation:
            _, _, _, train = self.tables
            epoch = str(min(self.updates(), math.ceil(self.pairs() / train.global_batch)))
            settings += [f"data.eval={self._shards(run.validation)}", f"eval.every={epoch}", "eval.share=1000"]
            settings += [f"checkpoint.every={epoch}", f"checkpoint.keep_every={epoch}"]
        return settings + self._overrides()

    def _settings(self) -> list[str]:
        run, place = RUNS[self.name], self.place
        settings = [f"data.train={self._shards(*run.data)}", f"run.dir={place.run(self.name)}"]
        settings += [f"checkpoint.init={place.run(run.start)}"] if run.start else []
        return settings + list(run.settings)

    def _overrides(self) -> list[str]:
        first = () if RUNS[self.name].start else RECIPE_OF_FIRST
        return [*((*RECIPE, *first) if self.place.miniature else ()), *self.place.overrides]

    def _shards(self, *names: str) -> str:
        return as_toml([self.place.shards / name for name in names])

    @cached_property
    def tables(self) -> tuple[Blueprint, Data, Optim, Train]:
        """What determines its length and cost, without the settings that depend on the number of pairs."""
        config = load_config(self.recipe, self._settings() + self._overrides())
        return config.blueprint, config.data, config.optim, config.train

    def counted(self) -> int:
        """Pairs, questions or sentences per epoch, counted in the shards; 0 if some do not exist yet."""
        names = RUNS[self.name].data
        if not all((self.place.shards / name / MANIFEST).exists() for name in names):
            return 0
        blueprint, data, _, _ = self.tables
        return training_mixture(data, blueprint.task.corpus).per_epoch

    def pairs(self) -> int:
        """The same, but the published number if shards do not exist yet."""
        return self.counted() or sum(map(published_pairs, RUNS[self.name].data))

    def updates(self) -> int:
        _, _, optim, train = self.tables
        return schedule_steps(train, optim, self.pairs())[0]

    def is_done(self) -> bool:
        folder = self.place.run(self.name)
        if not self.counted() or not has_checkpoints(folder):
            return False
        return is_at_end(folder, self.updates())

    def checkpoint(self) -> Path:
        """The checkpoint to test: of the best epoch on validation, if there is one, else the last.

        Raises:
            UserError: it does not exist.
        """
        folder, measure = self.place.run(self.name), RUNS[self.name].measure
        if not measure:
            return find_checkpoint(folder)
        steps, values = read_facts(folder).curve(measure)
        if not steps:
            raise UserError(f"{folder} has no {measure} in its metrics.jsonl, by which its best epoch is chosen.")
        best = folder / CHECKPOINTS / step_name(steps[values.index(max(values))])
        return find_checkpoint(best)


def published_pairs(name: str) -> int:
    """The published number of pairs; for a part of a corpus, its share of that."""
    folder, _, part = name.partition("/")
    corpus = CORPORA[folder]
    if not part:
        return corpus.pairs
    shares = dict(each.split("=") for each in corpus.making[corpus.making.index("--split") + 1].split(","))
    return round(float(shares[part]) * published_pairs(corpus.needs[0]))


@dataclass(frozen=True)
class EvaluateStep(ChainStep):
    place: Workplace
    evaluation: Evaluation

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"evaluate {self.evaluation.run} on {self.evaluation.data}"

    @property
    def _run(self) -> TrainStep:
        return TrainStep(self.place, self.evaluation.run)

    def words(self) -> list[str]:
        asked, results = self.evaluation, self.place.results(self.evaluation)
        checkpoint = self._run.checkpoint() if self._run.is_done() else self.place.run(asked.run)
        task = {"figure": "reconstruction", "server": "vqa"}.get(asked.task, asked.task)
        options = {
            "retrieval": ["--rerank", str(asked.rerank)],
            "figure": ["--pictures", str(results.with_suffix(""))],
            "server": ["--predictions", str(results.with_suffix(".predictions.json"))],
        }.get(asked.task, [])
        data = str(self.place.shards / asked.data)
        where = ["--checkpoint", str(checkpoint), "--data", data, *options, "--json", str(results)]
        return [*self.place.launch, "evaluate", task, *where]

    def is_done(self) -> bool:
        """Whether there are results of the weights to be tested."""
        path = self.place.results(self.evaluation)
        if not path.exists() or not self._run.is_done():
            return False
        return (read_json(path) or {}).get("weights_fingerprint") == fingerprint(self._run.checkpoint())


def chain(table: Table, place: Workplace) -> list[ChainStep]:
    """The steps in order: shards, then each run followed by its evaluations, so that results come early."""
    steps: list[ChainStep] = [GenerateStep(place)] if place.miniature else []
    steps += [ShardStep(place, name) for name in in_order(table.shards)]
    for name in table.runs:
        steps.append(TrainStep(place, name))
        steps += [EvaluateStep(place, each) for each in table.evaluations if each.run == name]
    return steps
