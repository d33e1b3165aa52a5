"""Rare-disease cases from a known world: rank the causal gene. Nothing is downloaded.

A case lists a patient's sex, the onset, and the findings noted as present and as absent. The
answer is JSON, {"explanation": ..., "genes": [...]}, graded 1, 0.7, 0.49, ... by the rank of the
true gene among the first five. Diseases overlap: each has characteristic findings, findings that
it shares with its look-alikes, and noise findings that occur in every disease. simulator.py has
the generative model and its exact posterior.

The warm-up solutions come from a simulated reader, a rule of thumb without access to the gene. It
reads two or three of the present findings, picked at random; each finding gives one vote to every
disease that the textbook (`World.listed`) lists it under; genes are ranked by votes, ties in
random order. Absent findings, frequencies, sex and onset are ignored. So the solutions have the
right format but are worse than the case allows: which findings to read and how to weigh them is
left for reinforcement learning to find out from the grades.
"""

from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.task import GRADER, make
