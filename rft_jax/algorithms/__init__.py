"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm`,
`SUPERVISED` (whether its rows must bring a target) and `needs_reference(groups) -> bool`; where
other groups of the config can be wrong for it, also `problems(groups) -> list of str`.
"""
from rft_jax.algorithms import distillation, grpo, rejection, sft
from rft_jax.algorithms.base import Algorithm, Room

ALGORITHMS = {
    'sft': sft,
    'grpo': grpo,
    'rejection': rejection,
    'distillation': distillation,
}
