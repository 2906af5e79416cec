"""The two ways data can fail: a user's mistake, or storage that is not what it was.

The command line ends with exit code 2 and one line for the first, 1 and a trace for the second.
"""


class DataError(ValueError):
    """A user's mistake. The message is one line: the value, the rule, the way out."""


class DamagedShard(RuntimeError):
    """A prepared file that is not the one its manifest describes. The message names the file."""


def check_minimums(config: object, prefix: str, **minimums: float) -> None:
    """Checks settings against their smallest values.

    Raises:
        DataError: one is smaller; names it as the user wrote it.
    """
    for name, least in minimums.items():
        value = getattr(config, name)
        if not value >= least:
            raise DataError(f"{prefix}.{name}={value} must be at least {least:g}")
