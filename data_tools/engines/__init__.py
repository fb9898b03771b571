"""Where the work on records runs."""
