"""The paper's tables by one command each: what each takes, in which order, and what was published."""
