"""Built-in tasks that download nothing. A task is a module with `Config` and `make(config)`.

To add a task: one file in this folder and one line in TASKS. `python -m rft_jax.tasks NAME
--to=DIR` writes its files. A task in PAIRS can also generate preference pairs.
"""

from rft_jax.tasks import arithmetic, arithmetic_pairs, chains, rare_disease
from rft_jax.tasks.rare_disease import pairs as rare_disease_pairs

TASKS = {'rare_disease': rare_disease, 'arithmetic': arithmetic, 'chains': chains}

# Task -> make_pairs(config, files of the task, number of training pairs).
PAIRS = {
  'arithmetic': arithmetic_pairs.make_pairs,
  'chains': arithmetic_pairs.make_pairs,
  'rare_disease': rare_disease_pairs.make_pairs,
}
