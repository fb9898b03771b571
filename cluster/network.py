"""x"""


def variables(network: str) -> dict[str, str]:
    return {}
