"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm` and
`DEMANDS`, a Demands: what it learns from, and whether it needs a reference or a critic.
"""

from rft_jax.algorithms import distillation, dpo, grpo, kto, ppo, rejection, reward_model, sft
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext

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
