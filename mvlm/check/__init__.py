"""Whether a run could begin or go on, found out without training, by the functions that training itself asks."""
