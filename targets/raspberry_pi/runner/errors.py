"""What is raised for every failure whose cause is known, and told in one line."""

from __future__ import annotations


class ModelError(Exception):
    """A failure whose cause is known; `code` and `exit_code` are those of the command line."""

    def __init__(self, code: str, exit_code: int, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; fix: {fix}")
        self.code, self.exit_code, self.cause, self.fix = code, exit_code, cause, fix


def first_line(error: BaseException) -> str:
    """Return what an exception says, or is, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
