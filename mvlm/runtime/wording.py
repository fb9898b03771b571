"""Words of messages that depend on a number."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with what it counts, such as "1 row" or "1,234 rows"; `plural` is needed if it is not the noun with an
    "s"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
