"""The commands that go back to a source."""

from __future__ import annotations

import argparse


def add_parser(subs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """None yet."""
