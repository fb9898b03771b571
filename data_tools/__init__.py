"""Making, checking and describing shard folders: `mvlm-data`."""
