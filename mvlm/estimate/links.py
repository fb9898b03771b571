"""How long it takes to make a corpus from a table of links and to have a model score it, and what it costs.

Computing follows from measured rates; what was not measured is assumed, and named in the plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LINK_MS = 0.64
"""CPU time of a link, from benchmarks/data/results/download.json: all of "ours, as they come", so that decoding its
small images is counted here as well."""

IMAGES_A_CPU_SECOND, PIXELS = 1187, 500 * 375
"""Decoded, checked, hashed and written: "whole sharding" of benchmarks/data/results/write.json, on images of that
size."""


@dataclass(frozen=True)
class LinkTablePlan:
    """What is asked, with assumptions as defaults."""

    links: int
    nodes: int = 1
    cores: int = 16  # hardware threads of a node
    alive: float = 0.7  # share of the links that still lead to an image
    image_kb: float = 100.0  # as downloaded
    megapixels: float = 0.5  # of an image as downloaded
    stored_kb: float = 0.0  # of an image in the shards; 0: as downloaded
    seconds: float = 1.5  # per request, including those that time out
    connections: int = 256  # per process; one process runs on each hardware thread
    gbit: float = 10.0  # a second, of a node
    encryption_ms: float = 2.0  # CPU time of a link for TLS and the look-up of its name, not needed on loopback
    core_hour: float = 0.04  # price of a hardware thread
    gb_month: float = 0.02  # price of a gigabyte stored


@dataclass(frozen=True)
class ScoringPlan:
    """What is asked of `mvlm score`, and of training on what is kept; all but `gpus` and `clusters` is assumed."""

    gpus: int  # that score a part each
    pairs_per_s: float = 200.0  # per GPU: a third of an update's 378 GFLOP a pair, at 25 TFLOP/s
    clusters: int = 0  # 0: none are made
    width: int = 256  # of an embedding
    tflops: float = 30.0  # reached by the one GPU that makes the clusters
    kept: float = 0.3  # share of the pairs that data.where keeps, as DataComp's baseline by CLIP score
    gpu_hour: float = 2.0  # price of a GPU


def plan_scoring(images: int, asked: ScoringPlan) -> dict[str, Any]:
    """Hours of scoring and of making clusters, bytes of the tables, and cost; reading shards is not counted."""
    scoring = images / asked.pairs_per_s / asked.gpus / 3600
    # Each embedding against each centroid, and against half of its cluster's.
    products = images * (asked.clusters + images / asked.clusters / 2) if asked.clusters else 0
    clusters = products * 2 * asked.width / (asked.tflops * 1e12) / 3600
    return {
        "hours": scoring + clusters,
        "scoring_hours": scoring,
        "cluster_hours": clusters,
        "embeddings_tb": images * asked.width * 2 / 1e12,
        "cost": (scoring * asked.gpus + clusters) * asked.gpu_hour,
        "kept": round(images * asked.kept),
        "gpus": asked.gpus,
        "assumed": {name: value for name, value in asdict(asked).items() if name not in ("gpus", "clusters")},
    }


def scoring_text(plan: dict[str, Any]) -> str:
    """The plan in lines, for people."""
    lines = [
        f"scores         {plan['scoring_hours']:,.1f} hours on {plan['gpus']:,} GPUs, which cost {plan['cost']:,.0f}, "
        "with the clusters",
        f"clusters       {plan['cluster_hours']:,.1f} hours on one GPU",
        f"embeddings     {plan['embeddings_tb']:,.2f} TB",
        f"kept           {plan['kept']:,} pairs, which a run reads by data.where",
        "assumed        " + ", ".join(f"{name} {value:g}" for name, value in plan["assumed"].items()),
    ]
    return "\n".join(lines) + "\n"


def plan_links(asked: LinkTablePlan) -> dict[str, Any]:
    """Hours by what bounds them, bytes and cost; "assumed" has the fields of `asked` that were not measured."""
    images = asked.links * asked.alive
    image_s = asked.megapixels * 1e6 / PIXELS / IMAGES_A_CPU_SECOND
    cpu_s = asked.links * (LINK_MS + asked.encryption_ms) / 1e3 + images * image_s
    threads = asked.nodes * asked.cores
    hours = {
        "computing": cpu_s / threads / 3600,
        "network": images * asked.image_kb * 8e3 / (asked.nodes * asked.gbit * 1e9) / 3600,
        "waiting for hosts": asked.links * asked.seconds / (threads * asked.connections) / 3600,
    }
    bound = max(hours, key=lambda name: hours[name])
    stored_tb = images * (asked.stored_kb or asked.image_kb) / 1e9
    return {
        "links": asked.links,
        "images": round(images),
        "hours": hours[bound],
        "bound_by": bound,
        "hours_by_bound": hours,
        "links_per_s": asked.links / (hours[bound] * 3600),
        "downloaded_tb": images * asked.image_kb / 1e9,
        "stored_tb": stored_tb,
        "core_hours": hours[bound] * threads,
        "cost": hours[bound] * threads * asked.core_hour,
        "storage_cost_a_month": stored_tb * 1e3 * asked.gb_month,
        "measured": {"ms per link": LINK_MS, "images/CPU-s": IMAGES_A_CPU_SECOND, "of pixels": PIXELS},
        "assumed": {name: value for name, value in asdict(asked).items() if name not in ("links", "nodes", "cores")},
    }


def links_text(plan: dict[str, Any]) -> str:
    """The plan in lines, for people."""
    bounds = ", ".join(f"{name} {value:,.1f}" for name, value in plan["hours_by_bound"].items())
    lines = [
        f"links          {plan['links']:,}, of which {plan['images']:,} give an image",
        f"the download   {plan['hours']:,.1f} hours at {plan['links_per_s']:,.0f} links/s, bound by {plan['bound_by']}",
        f"hours by bound {bounds}",
        f"downloaded     {plan['downloaded_tb']:,.1f} TB",
        f"shards         {plan['stored_tb']:,.1f} TB, which cost {plan['storage_cost_a_month']:,.0f} a month",
        f"core hours     {plan['core_hours']:,.0f}, which cost {plan['cost']:,.0f}",
        "measured       " + ", ".join(f"{name} {value:,g}" for name, value in plan["measured"].items()),
        "assumed        " + ", ".join(f"{name} {value:g}" for name, value in plan["assumed"].items()),
    ]
    return "\n".join(lines) + "\n"
