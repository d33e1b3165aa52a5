"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm`,
`SUPERVISED` (whether its rows must bring a target), `needs_reference(groups) -> bool` and
`critic_kind(groups) -> str | None`, one of models.CRITIC_KINDS.
"""
from rft_jax.algorithms import grpo, ppo, sft
from rft_jax.algorithms.base import Algorithm, Room

ALGORITHMS = {
    'sft': sft,
    'grpo': grpo,
    'ppo': ppo,
}
