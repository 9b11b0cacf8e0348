"""The one exception for what a user can cause, and can mend."""

from __future__ import annotations


class UserError(Exception):
    """An error with what was seen, where, and the mend. The command line prints it without a traceback and exits 2.

    Several independent problems travel together: ``UserError.join(errors)``.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.problems: list[tuple[str, str, str]] = [(where, what, mend)]
        super().__init__(what)

    @classmethod
    def join(cls, errors: list[UserError]) -> UserError:
        """Join several errors into one that carries all their problems, each once."""
        joined = cls("")
        joined.problems = list(dict.fromkeys(problem for error in errors for problem in error.problems))
        return joined

    def __str__(self) -> str:
        return "\n".join(_line(*problem) for problem in self.problems)


def _line(where: str, what: str, mend: str) -> str:
    text = f"{where}: {what}" if where else what
    return f"{text}. {mend}" if mend else text


def root_cause(error: BaseException) -> str:
    """Return the first line of the exception that started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
