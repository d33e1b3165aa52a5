"""Learning algorithms: each is `collect` (makes the batch of a step) plus `loss`.

To add one: a file with `make(context) -> Algorithm` and `REQUIREMENTS`, and a line in ALGORITHMS.
"""

from rft_jax.algorithms import distillation, dpo, grpo, kto, ppo, rejection, reward_model, sft
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch

ALGORITHMS = {
  'sft': sft,
  'grpo': grpo,
  'ppo': ppo,
  'dpo': dpo,
  'kto': kto,
  'reward_model': reward_model,
  'rejection': rejection,
  'distillation': distillation,
}
