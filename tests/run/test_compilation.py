"""The number of compiled programs: none after the first step of a stage."""

import jax

from rft_jax.records import metrics
from rft_jax.run import compilation


def test_nothing_is_compiled_after_the_first_step_of_a_stage(finished):
  before = compilation.count()
  jax.jit(lambda x: x + before)(1)
  assert compilation.count() > before  # it does count
  rows = metrics.read(finished / 'metrics.jsonl')
  counts = {row['step']: row['compilations'] for row in rows}
  assert [counts[step] for step in (2, 3, 5, 6)] == [0, 0, 0, 0]
