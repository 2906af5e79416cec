"""How a command ends: 0 done, 1 a failure, 2 the user's mistake, 75 saved, requeue me."""

from ..data.errors import DataError
from ..model.errors import ModelError

EXIT_FAILURE, EXIT_MISTAKE, EXIT_REQUEUE = 1, 2, 75


class UserError(ValueError):
    """A user's mistake outside data and model. One line: the value, the rule, the way out."""


class Preempted(Exception):
    """A signal or trigger asked the run to leave; it has saved at this step."""

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"{cause}: saved at step {step}; run the same command to go on")
        # A signal comes from the scheduler, which may start the run again; who touches the trigger
        # wants it to stay ended.
        self.exit_code = EXIT_REQUEUE if cause.startswith("SIG") else 0


MISTAKES: tuple[type[Exception], ...] = (UserError, DataError, ModelError)
"""What ends a command with one line and exit code 2."""
