"""Built-in tasks that download nothing. A task is a module with `Config` and `make(config)`.

To add one: one file beside these and one line in TASKS. `python -m rft_jax.tasks NAME --to=DIR`
writes its files. One in PAIRS can also make pairs of a right and a wrong answer.
"""

from rft_jax.tasks import arithmetic, arithmetic_pairs, chains, rare_disease, rare_disease_pairs

TASKS = {'rare_disease': rare_disease, 'arithmetic': arithmetic, 'chains': chains}

PAIRS = {
  'arithmetic': arithmetic_pairs.make,
  'chains': arithmetic_pairs.make,
  'rare_disease': rare_disease_pairs.make,
}
