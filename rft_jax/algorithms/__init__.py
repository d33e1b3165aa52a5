"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm`,
`needs_reference(groups) -> bool`, `critic_kind(groups) -> str | None`, one of
models.CRITIC_KINDS, and `ROWS`, what it learns from: 'prompts' (it samples and grades), 'targets'
(a row brings the answer to learn), 'pairs' (chosen and rejected) or 'answers' (single ones, marked
good or bad); where other groups of the config can be wrong for it, also `problems(groups) -> list
of str`.
"""
from rft_jax.algorithms import distillation, dpo, grpo, kto, ppo, rejection, sft
from rft_jax.algorithms.base import Algorithm, Room

ALGORITHMS = {
    'sft': sft,
    'grpo': grpo,
    'ppo': ppo,
    'dpo': dpo,
    'kto': kto,
    'rejection': rejection,
    'distillation': distillation,
}
