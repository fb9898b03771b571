"""The stages of a run: `[[stage]]` tables of its TOML, each of which changes the run's configuration for a while.

A stage's table sets some of the run's own keys; all others keep the run's values. It may also have a `name`, and
`schedule = "continue"`, with which one learning-rate schedule spans the stage before and this one. A list of numbers as
`train.global_batch` is a ramp: a stage for each, all equally long.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.config.load import LENGTHS, STAGE, config_from_dict, dump_config, load_stored_config
from mvlm.config.schema import Config, Data
from mvlm.config.toml import as_toml, read_tables
from mvlm.errors import UserError

OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "name": ("a string", ()),
    "schedule": ('"own" or "continue"', ("own", "continue")),
}
"""Keys of a stage that are not the configuration's: what they may be, and the values if these are few."""

Table = dict[str, Any]


@dataclass(frozen=True)
class Stages:
    """
    Attributes:
        base: the configuration of all, except for what each sets.
        tables: what each sets, with ramps spread out; a single empty one if the run has no stages.
        where: the file, for messages.
    """

    base: Config
    tables: tuple[Table, ...]
    where: str = ""

    def __len__(self) -> int:
        return len(self.tables)

    def config(self, number: int) -> Config:
        """The configuration of a stage; 0 is the first.

        Raises:
            UserError: it sets a key that does not exist, or a value that no run could work with.
        """
        merged = tomllib.loads(dump_config(self.base))
        for table, keys in self.tables[number].items():
            if table in OWN:
                continue
            if not isinstance(keys, dict):
                raise UserError(f"{self._place(number)}: {table} is {keys!r}: write keys of tables, like train.steps.")
            merged.setdefault(table, {}).update(keys)
        given = self.tables[number].get("train", {})
        if not self.is_all and any(key in given for key in LENGTHS):
            merged["train"] |= {key: 0 for key in ("steps", "pairs") if key not in given}
        return config_from_dict(merged, self._place(number))

    @property
    def is_all(self) -> bool:
        """Whether this is a run without stages."""
        return len(self.tables) == 1 and not self.tables[0]

    def name(self, number: int) -> str:
        """A stage's own name; "" if it has none."""
        return str(self.tables[number].get("name", ""))

    def title(self, number: int) -> str:
        """A stage's title, such as "stage 2 of 3 (all four)"."""
        name = self.name(number)
        return f"stage {number + 1} of {len(self)}" + (f" ({name})" if name else "")

    def head(self, number: int) -> int:
        """The stage whose schedule a stage follows: itself, or the first of those that it continues."""
        while number and self.tables[number].get("schedule") == "continue":
            number -= 1
        return number

    def last_of(self, number: int) -> int:
        """The last stage that follows the same schedule as a stage."""
        while number + 1 < len(self) and self.head(number + 1) == self.head(number):
            number += 1
        return number

    def check(self) -> None:
        """Raises `UserError` if a stage is mistaken."""
        for number, table in enumerate(self.tables):
            place = self._place(number)
            for key, (wanted, values) in OWN.items():
                if key in table and not (table[key] in values if values else isinstance(table[key], str)):
                    raise UserError(f"{place}: {key} is {table[key]!r}: give {wanted}.")
            lengths = {key: table["train"][key] for key in LENGTHS if key in table.get("train", {})}
            if len(lengths) != 1 and (number or table):
                raise UserError(
                    f"{place} has {' and '.join(f'train.{key}' for key in lengths) or 'no length'}: give one of "
                    "train.steps, train.pairs and train.epochs."
                )
            if 0 in lengths.values():
                raise UserError(
                    f"{place} has train.{next(iter(lengths))} = 0: give every stage, and every batch of a ramp, more."
                )
            self.config(number)

    def dump(self) -> str:
        """The stages as TOML that `load_stored_stages` reads."""
        return dump_config(self.base) + "\n".join(_dump_table(table) for table in self.tables)

    def _place(self, number: int) -> str:
        return self.where if self.is_all else f"{self.where}, stage {number + 1}"


def make_stages(base: Config, tables: Sequence[Table], where: str) -> Stages:
    """The stages of a run whose TOML has these tables, none = one stage; raises `UserError` if one is mistaken."""
    spread = [each for table in tables for each in _spread(table, where)] or [{}]
    stages = Stages(base, tuple(spread), where)
    stages.check()
    return stages


def load_stored_stages(path: Path) -> Stages:
    """The stages that a run has stored, in its folder or a checkpoint; raises `UserError` if the file is damaged."""
    tables = read_tables(path, "file of stages").get(STAGE, [{}])
    return Stages(load_stored_config(path), tuple(tables), str(path))


def with_appended(stages: Stages, path: Path) -> Stages:
    """The same, and any more that the file of stages has, which `mvlm stage add` has appended meanwhile."""
    if not path.is_file():
        return stages
    return dataclasses.replace(stages, tables=(*stages.tables, *load_stored_stages(path).tables[len(stages) :]))


def keys_of(table: Mapping[str, Any]) -> set[str]:
    """The keys of the configuration that a stage sets, as `table.key`."""
    return {f"{name}.{key}" for name, keys in table.items() if name not in OWN for key in keys}


def _spread(table: Table, where: str) -> list[Table]:
    """The stage alone, or those of its ramp of the global batch."""
    train = table.get("train", {})
    batches = train.get("global_batch") if isinstance(train, dict) else None
    if not isinstance(batches, list):
        return [table]
    if len(batches) < 2 or not all(isinstance(batch, int) for batch in batches):
        raise UserError(
            f"{where}: a stage's train.global_batch is {batches!r}: give one number, or a list of two or more."
        )
    found = []
    for number, batch in enumerate(batches):
        length = {key: _share(key, train[key], number, len(batches)) for key in LENGTHS if key in train}
        name = f"{table.get('name', 'ramp')}, {batch} pairs"
        own = table | {"name": name, "train": train | length | {"global_batch": batch}}
        found.append(own | {"schedule": "continue"} if number else own)
    return found


def _share(key: str, length: Any, number: int, count: int) -> Any:
    """One of `count` equal parts of a length, which add up to it."""
    if key == "epochs":
        return length / count
    return length * (number + 1) // count - length * number // count


def _dump_table(table: Table) -> str:
    lines = [f"[[{STAGE}]]"]
    for name, value in table.items():
        if isinstance(value, dict):
            lines += [f"{name}.{key} = {as_toml(each)}" for key, each in value.items()]
        else:
            lines.append(f"{name} = {as_toml(value)}")
    return "\n".join(lines) + "\n"


def changed_data(before: Config, after: Config) -> bool:
    """Whether two stages draw other samples, or in other shares."""
    names = ("train", "weights", "where", "epoch")
    return any(getattr(before.data, name) != getattr(after.data, name) for name in names)


def draws_alike(stages: Stages) -> bool:
    """Whether all stages draw the same samples in the same shares."""
    first = stages.config(0)
    return not any(changed_data(first, stages.config(number)) for number in range(1, len(stages)))


def with_shuffle(stages: Stages, settled: Data) -> Stages:
    """The same with `data.shuffle` as it was settled."""
    data = dataclasses.replace(stages.base.data, shuffle=settled.shuffle)
    return dataclasses.replace(stages, base=dataclasses.replace(stages.base, data=data))
