"""Tables beside shards, written with pyarrow alone."""

import hashlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.files import Shards
from mvlm.data.shards.schema import MANIFEST, read_manifest


def add_tables(folder, name, columns):
    """Give the shards of a folder tables.

    Args:
        columns: for each shard a dict of lists, or None = no table.
    """
    manifest = read_manifest(folder)
    shards = []
    for shard, values in zip(manifest.shards, columns, strict=True):
        if values is not None:
            path = folder / f"{shard.file.removesuffix('.arrow')}.{name}.parquet"
            pq.write_table(pa.table(values), path, write_page_checksum=True)
            content = path.read_bytes()
            about = name, len(content), hashlib.sha256(content).hexdigest()
            shard = replace(shard, tables=(*shard.tables, about))
        shards.append(shard)
    (folder / MANIFEST).write_text(replace(manifest, shards=Shards(shards)).to_json())
    return folder
