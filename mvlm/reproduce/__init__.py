"""The paper's tables, by one command each: the steps of each, in order, and the published numbers."""
