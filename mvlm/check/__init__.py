"""Whether a run could start or resume, found out without training, by the functions that training itself asks."""
