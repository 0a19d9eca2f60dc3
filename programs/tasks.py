"""The course's tasks by name, for the programs that work with any of them."""

from pathlib import Path

import classifier
import paraphrase_detection
import sonnet_generation
from engine.errors import InputError
from engine.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (*classifier.TASKS.values(), paraphrase_detection.TASK, sonnet_generation.TASK)
}
PROGRAMS = {task.command[0]: task for task in TASKS.values()}  # each by one of its tasks


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """`own flags -- PROGRAM.py its flags` -> the words before and after the `--`."""
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def named_program(words: list[str]) -> tuple[str, list[str]]:
    """`PROGRAM.py its flags` -> (PROGRAM.py, its flags), if a task has such a program."""
    program, *flags = words or [""]
    program = Path(program).name
    if program not in PROGRAMS:
        raise InputError(
            f"expected at the end: -- PROGRAM.py and its flags, one of {list(PROGRAMS)}"
        )
    return program, flags
