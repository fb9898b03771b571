"""Whether a step need not run: hashes of what it reads and of its settings, kept beside what it writes.

A step's key is a hash of its command and settings and, for each input, of the content if it comes from outside, or of
the key of the step that makes it. So all keys are known before anything runs, and a changed setting changes the keys of
exactly what depends on it. The proof beside an output says by which key it was made, and what it was when it was done.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvlm.config.shipped import find_file
from mvlm.config.toml import read_tables
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage, publish

from .file import BY_RUN, PipelineStep
from .graph import Graph, inside
from .words import command_words, step_folder

SUFFIX, MANIFEST = ".step.json", "manifest.json"
READ_WHOLE = 1 << 26  # bytes up to which a file's content is hashed; of larger ones, size and time of change
REMEDY = "check the address and the store"


@dataclass
class Proof:
    """The note beside an output.

    Attributes:
        key: of the step that makes or made the output.
        own: nothing was there when the step was first submitted, so that the step made what is.
        done: the output is complete.
        outputs: a digest of each.
        logs: of the pipeline that makes it; "" once it is done.
    """

    key: str
    own: bool = False
    done: bool = False
    outputs: dict[str, str] = field(default_factory=dict)
    logs: str = ""


def keys(graph: Graph) -> dict[str, str]:
    """The key of each step.

    Raises:
        UserError: a run TOML cannot be read.
    """
    found: dict[str, str] = {}
    for name in graph.order:
        step = graph.pipeline.steps[name]
        inputs: dict[str, Any] = {path: [found[maker] for maker in graph.needs[name]] for path in graph.reads[name]}
        inputs |= {path: digest(path) for path in graph.from_outside(name)}
        found[name] = _hash([step.kind, _settings(step), graph.pipeline.environment(step), step.writes, inputs])
    return found


def proof_path(graph: Graph, name: str) -> str:
    """Where a step's proof is: beside its first output or, if it has none, in its logs. If it adds to another step's
    output, the proof is beside that, which may not exist when it is first written, and bears the adding step's name."""
    step = graph.pipeline.steps[name]
    if not step.writes:
        return str(step_folder(graph.pipeline, name) / f"done{SUFFIX}")
    first = step.writes[0]
    written = [path for other in graph.pipeline.steps.values() for path in other.writes]
    outermost = min((path for path in written if inside(first, path)), key=len)
    adds = outermost != first or first in graph.reads[name]
    return f"{outermost}.{name}{SUFFIX}" if adds else f"{first}{SUFFIX}"


def read_proof(path: str) -> Proof | None:
    """The proof at a path or URL; None if there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if "://" not in path:
            return Proof(**json.loads(Path(path).read_text(encoding="utf-8")))
        folder, _, name = path.rpartition("/")
        content = Storage(folder, REMEDY).read(name)
        return Proof(**json.loads(content)) if content else None
    return None


def write_proof(path: str, proof: Proof) -> None:
    text = json.dumps(asdict(proof), indent=1)
    if "://" in path:
        folder, _, name = path.rpartition("/")
        Storage(folder, REMEDY).write(name, text.encode())
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # a unique name: steps that begin at the same time, on any node, may each write what their input's job could not
        partial = Path(f"{path}.{secrets.token_hex(8)}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            publish(partial, Path(path))
        finally:
            partial.unlink(missing_ok=True)


def is_proven(graph: Graph, name: str, key: str) -> bool:
    """Whether a step has been done by this key, and its outputs are as it left them."""
    proof = read_proof(proof_path(graph, name))
    return (
        proof is not None and proof.done and proof.key == key and proof.outputs == outputs(graph.pipeline.steps[name])
    )


def outputs(step: PipelineStep) -> dict[str, str]:
    """The digest of each output; "" if it is not complete."""
    return {path: (digest(path, step.kind) or "") if is_whole(path, step.kind) else "" for path in step.writes}


def is_whole(path: str, kind: str = "") -> bool:
    """Whether all that a manifest names is there; in a run folder, a checkpoint; of all else, anything."""
    if manifests := _manifests(path):
        return all(_holds_its_shards(folder, manifest) for folder, manifest in manifests.items())
    if kind in ("shard", "filter"):
        return False
    if "://" in path:
        return digest(path) is not None
    place = Path(path)
    if kind in BY_RUN:
        return (place / "checkpoints/latest").is_file()
    return any(place.iterdir()) if place.is_dir() else place.is_file()


def rows(path: str) -> int | None:
    """The rows of all shards at a path; None if there are none."""
    manifests = _manifests(path)
    return sum(int(manifest.get("rows", 0)) for manifest in manifests.values()) if manifests else None


def digest(path: str, kind: str = "") -> str | None:
    """A hash of what is at a path or URL, cheap even if that is large; None if there is nothing.

    It covers the fingerprint of shards, the tables of scores, the checkpoint that a run would resume from, the content
    of a file or, beyond 64 MB, its size and time of change; for a folder, size and time of change of all its files.
    """
    if manifests := _manifests(path):
        part = "tables" if kind == "score" else "fingerprint"
        return _hash([[folder, manifest.get(part)] for folder, manifest in sorted(manifests.items())])
    if "://" in path:
        folder, _, name = path.rpartition("/")
        sizes: dict[str, int | None] = dict(Storage(path, REMEDY).sizes())
        sizes = sizes or {name: Storage(folder, REMEDY).size(name)}
        return _hash(sorted(sizes.items())) if sizes != {name: None} else None
    place = Path(path)
    if kind in BY_RUN and place.is_dir():
        return _hash((place / "checkpoints/latest").read_text(encoding="utf-8"))
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file() and not file.name.endswith(SUFFIX))
        return _hash([[str(file.relative_to(place)), _stamp(file)] for file in files])
    if place.is_file():
        large = place.stat().st_size > READ_WHOLE
        return _hash(_stamp(place)) if large else hashlib.sha256(place.read_bytes()).hexdigest()
    matches = sorted(glob.glob(path))
    return _hash([[match, digest(match)] for match in matches]) if matches else None


def _settings(step: PipelineStep) -> Any:
    if step.kind not in BY_RUN:
        return command_words(step)
    run = read_tables(find_file(step.run, "configs"), "run configuration")
    deepspeed = find_file(step.deepspeed, "ds_configs")
    try:
        return [run, json.loads(deepspeed.read_text(encoding="utf-8")), step.overrides]
    except (OSError, ValueError) as error:
        raise UserError(f"{step.name}.deepspeed names {step.deepspeed}, which is not a JSON file ({error}).") from None


def _manifests(path: str) -> dict[str, dict[str, Any]]:
    """The manifests, by folder, of the shards at a path or, if a corpus is split, of those one level below."""
    if "://" in path:
        store = Storage(path, REMEDY)
        if content := store.read(MANIFEST):
            return {path: json.loads(content)}
        names = [name for name in store.sizes() if name.count("/") == 1 and name.endswith(f"/{MANIFEST}")]
        return {f"{path}/{name.partition('/')[0]}": json.loads(store.read(name) or b"{}") for name in names}
    place = Path(path)
    files = [place / MANIFEST] if (place / MANIFEST).is_file() else sorted(place.glob(f"*/{MANIFEST}"))
    found = {}
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and isinstance(content.get("shards"), list):
                found[str(file.parent)] = content
    return found


def _holds_its_shards(folder: str, manifest: Mapping[str, Any]) -> bool:
    if "://" in folder:
        return True  # a store has an object in full or not at all, and the manifest comes last
    with contextlib.suppress(OSError, KeyError, TypeError):
        return all((Path(folder) / one["file"]).stat().st_size == one["bytes"] for one in manifest["shards"])
    return False


def _stamp(file: Path) -> list[int]:
    facts = os.stat(file)
    return [facts.st_size, facts.st_mtime_ns]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
