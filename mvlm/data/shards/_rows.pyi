"""The extension of mvlm/data/shards/native, for columns.py alone; its functions are those of plain_rows.py."""

from mvlm.data.shards.plain_rows import read_row as read_row
from mvlm.data.shards.plain_rows import row_crc32 as row_crc32
