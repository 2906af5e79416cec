"""How a model can be a user's mistake. The command line ends with exit code 2 and one line."""


class ModelError(ValueError):
    """A model that cannot be built. The message is one line: the value, the rule, the way out."""
