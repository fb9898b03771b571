"""Finds what is wrong with the nodes and the network between them, in a minute before a run of days."""
