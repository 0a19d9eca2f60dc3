"""The course's tasks by name, for the programs that work with any of them."""

import classifier
import paraphrase_detection
import sonnet_generation
from engine.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (*classifier.TASKS.values(), paraphrase_detection.TASK, sonnet_generation.TASK)
}
