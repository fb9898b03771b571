"""Making, checking and describing shard folders: `python -m data_tools`."""
