"""What a model is worth: perplexity, tasks, speed and memory."""

from slimformer.evaluate.collapse import find_collapses
from slimformer.evaluate.footprint import Footprint, logits_digest, measure_footprint
from slimformer.evaluate.perplexity import TextResult, evaluate_text, read_text
from slimformer.evaluate.speed import Contender, Speed, Spread, measure_speed
from slimformer.evaluate.task_files import Item, Task, find_tasks, load_task, recurring_words
from slimformer.evaluate.tasks import TaskResult, evaluate_task

__all__ = [
    "Contender",
    "Footprint",
    "Item",
    "Speed",
    "Spread",
    "Task",
    "TaskResult",
    "TextResult",
    "evaluate_task",
    "evaluate_text",
    "find_collapses",
    "find_tasks",
    "load_task",
    "logits_digest",
    "measure_footprint",
    "measure_speed",
    "read_text",
    "recurring_words",
]
