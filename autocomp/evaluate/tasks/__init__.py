"""Zero-shot tasks of lm-eval on models in memory, from the hub or from local files."""

from autocomp.evaluate.tasks.local import LocalTask, write_tasks
from autocomp.evaluate.tasks.run import evaluate_tasks
from autocomp.evaluate.tasks.suite import TaskSuite
from autocomp.evaluate.tasks.table import SUITES, TASKS, task_names

__all__ = [
    "SUITES",
    "TASKS",
    "LocalTask",
    "TaskSuite",
    "evaluate_tasks",
    "task_names",
    "write_tasks",
]
