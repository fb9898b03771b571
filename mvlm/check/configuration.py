"""Checks of the run TOML by itself: the layout of a batch, and kernels."""

from __future__ import annotations

from mvlm.check.report import Report
from mvlm.config.schema import Config
from mvlm.runtime.wording import counted
from mvlm.training.kernels import ALL_OPS, check_names
from mvlm.training.warnings import groups_warning
from mvlm.training.zero.config import accumulation_steps, micro_batch, usable_ranks


def check_layout(report: Report, config: Config, world: int, split: int) -> int:
    """Divide the global batch as training would, and return the number of replicas; 0 if it cannot be divided.

    Args:
        split: ranks per replica.
    """
    with report.judged("layout"):
        ranks = usable_ranks(config.train, world, split)
        replicas = ranks // split
        accumulation = accumulation_steps(config.train, replicas)
        used = counted(ranks, "rank") if ranks == world else f"{ranks} of {world} ranks"
        used += f" in {counted(replicas, 'replica')} of {split}" if split > 1 else ""
        pairs, objectives = micro_batch(config.train, replicas), config.objectives
        has_groups = bool(objectives.itm) and not config.task.is_labelled
        groups = f", ITM groups of {objectives.group(config.train.global_batch)}" if has_groups else ""
        report.right(
            "layout",
            f"A global batch of {config.train.global_batch} is {used} x "
            f"{counted(accumulation, 'micro-batch', 'micro-batches')} of {pairs}{groups}.",
        )
        if has_groups and (slower := groups_warning(objectives, config.train.global_batch, replicas, pairs)):
            report.warning("layout", slower)
        return replicas
    return 0


def check_kernels(report: Report, config: Config) -> None:
    """Check the names; one that cannot run here is only unknown, since this need not be the run's machine."""
    with report.judged("kernels"):
        check_names(config.kernels)
        named = {name: value for name in ALL_OPS if (value := getattr(config.kernels, name)) != "auto"}
        report.right("kernels", f"All names in [kernels] are known ({', '.join(named.values()) or 'all auto'}).")
        for name, value in named.items():
            if lacking := ALL_OPS[name].lacking().get(value):
                report.unknown("kernels", f"kernels.{name} = {value!r} cannot run on this machine ({lacking}).")
