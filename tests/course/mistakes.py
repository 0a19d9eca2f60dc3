"""A mistake that the tests plant into a file of this project."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """In `file`, `old` becomes `new`. line: the one of the rubric that is lost, as section.line."""

    line: str
    says: str  # how the message begins
    file: str
    old: str
    new: str
