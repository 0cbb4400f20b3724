"""What a model is worth: perplexity, tasks, speed and memory."""

from slimformer.evaluate.collapse import find_collapses
from slimformer.evaluate.footprint import Footprint, logits_digest, measure_footprint
from slimformer.evaluate.perplexity import TextResult, evaluate_text, read_text
from slimformer.evaluate.probe import ProbeResult, probe_generation
from slimformer.evaluate.speed import (
    Contender,
    Runner,
    Speed,
    Spread,
    measure_speed,
    run_rounds,
)
from slimformer.evaluate.task_files import Item, Task, find_tasks, load_task, recurring_words
from slimformer.evaluate.tasks import TaskResult, evaluate_task
from slimformer.stopwatch import SHORT_PROMPT, Times

__all__ = [
    "SHORT_PROMPT",
    "Contender",
    "Footprint",
    "Item",
    "ProbeResult",
    "Runner",
    "Speed",
    "Spread",
    "Task",
    "TaskResult",
    "TextResult",
    "Times",
    "evaluate_task",
    "evaluate_text",
    "find_collapses",
    "find_tasks",
    "load_task",
    "logits_digest",
    "measure_footprint",
    "measure_speed",
    "probe_generation",
    "read_text",
    "recurring_words",
    "run_rounds",
]
