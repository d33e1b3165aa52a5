"""Learning algorithms: each is `collect` (make the batch of a step) plus `loss`.

To add one: a file, and a line in ALGORITHMS. The file holds `make(room) -> Algorithm`,
`SUPERVISED` (whether its rows must bring a target) and `needs_reference(groups) -> bool`.
"""
from rft_jax.algorithms import grpo, sft
from rft_jax.algorithms.base import Algorithm, Room

ALGORITHMS = {
    'sft': sft,
    'grpo': grpo,
}
