"""mvlm from Python: `mvlm.train`, `mvlm.load` and `mvlm.open`."""
