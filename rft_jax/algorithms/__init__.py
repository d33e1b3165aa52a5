"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm`,
`needs_reference(groups) -> bool`, `critic_kind(groups) -> str | None`, one of
models.CRITIC_KINDS, and `ROWS`, what it learns from: 'prompts' (it samples and grades), 'targets'
(a row brings the answer to learn), 'pairs' (chosen and rejected) or 'answers' (single ones, marked
good or bad). One with a critic has `critic_optim(groups, of_stage) -> OptimConfig`; where other
groups of the config can be wrong for it, also `problems(groups) -> list of str`.
"""
from rft_jax.algorithms import distillation, dpo, grpo, kto, ppo, rejection, reward_model, sft
from rft_jax.algorithms.base import Algorithm, Room

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
