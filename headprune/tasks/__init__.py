"""What "better" means: one file per kind of task, each a :class:`Task`."""

from headprune.tasks.kinds import TASKS, detect_task, get_task, of_outputs, refuse_other_head
from headprune.tasks.task import Task

__all__ = ["TASKS", "Task", "detect_task", "get_task", "of_outputs", "refuse_other_head"]
