"""What is done to a model that is built and trained: ticks put beside its FFNs, norms of a task's own, freezing.

Five functions that need nothing else of this project, for any Transformer whose FFNs are found:

    attach_ticks(model, width=16)       task_norms(model)       merge(model)       save_adapter(model, path)
    load_adapter(model, path)

and for several tasks on one base: set_task(model, name), or a name per example.
"""

from ticks.models.changes.adapter_file import AdapterError, load_adapter, remove_task, save_adapter
from ticks.models.changes.beside import attach_ticks
from ticks.models.changes.families import FAMILIES, Family, find_ffns
from ticks.models.changes.fold_norms import fold_norms
from ticks.models.changes.frozen import base, digest, frozen, quiet_statistics, train_only
from ticks.models.changes.heads import TaskHeads
from ticks.models.changes.merge import CannotMerge, merge, unmerge
from ticks.models.changes.prune import n_nonzero, prune, stay_pruned
from ticks.models.changes.task_norm import task_norms
from ticks.models.changes.tasks import chosen_of, freeze, parameters_of, set_task, task_set, tasks_of

__all__ = [
    "FAMILIES",
    "AdapterError",
    "CannotMerge",
    "Family",
    "TaskHeads",
    "attach_ticks",
    "base",
    "chosen_of",
    "digest",
    "find_ffns",
    "fold_norms",
    "freeze",
    "frozen",
    "load_adapter",
    "merge",
    "n_nonzero",
    "parameters_of",
    "prune",
    "quiet_statistics",
    "remove_task",
    "save_adapter",
    "set_task",
    "stay_pruned",
    "task_norms",
    "task_set",
    "tasks_of",
    "train_only",
    "unmerge",
]
