"""Tries what works in a machine's environment: each probe in a process of its own and with its own time limit."""
