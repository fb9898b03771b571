"""Checks whether a run could start or resume, without training, by the functions that training itself uses."""
