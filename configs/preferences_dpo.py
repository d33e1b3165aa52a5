r"""Pairs of a right and a wrong worked answer: DPO on a policy that can half do it.

  python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 --train_rows=2700 \
    --pairs=1100 --to=runs/arithmetic/data
  python -m rft_jax.main --config=configs/arithmetic_grpo.py --workdir=runs/arithmetic/run \
    --stop_at_step=800
  python -m rft_jax.main --config=configs/arithmetic_grpo.py --workdir=runs/arithmetic/run \
    --mode=export --checkpoint=800 --to=runs/arithmetic/warmed_up
  python -m rft_jax.main --config=configs/preferences_dpo.py --workdir=runs/arithmetic/dpo

The pairs are made by the task, not by the policy: to 1100 sums that the warm-up never saw a right
solution, and one with a slip in one step that is carried on. 300 sums are held out, as pairs and to
be answered: 4 samples each at temperature 1 and one greedy; 95 % intervals over the rows. 0.46 M
parameters, 100 steps of 32 pairs, 2.9 epochs, seed 0.

Hardware and time: one core of an AMD EPYC that was shared with other work, just under 2 min of
processor time, evaluations included.

                          step 0    nll_coef=0, step 100    nll_coef=1, step 100
  pair accuracy           0.5       0.813 [0.770, 0.857]    0.837 [0.793, 0.877]
  grade, sampled          0.358     0.258 [0.220, 0.297]    0.343 [0.303, 0.383]
  grade, greedy           0.473     0.343 [0.290, 0.397]    0.443 [0.387, 0.500]
  logps/chosen, a batch   -1.5      -3.1                    -2.0

So a policy can learn to tell right answers from wrong ones and yet give fewer right ones: DPO asks
for a margin, and takes it from both. Plain DPO makes the chosen answers less likely too, and what
it gains goes to answers that are in no pair (unparsable: 0.7 % before, 6.2 % after). The NLL of the
chosen answers beside it (RPO) costs nothing in accuracy and keeps the grade where it was: kept
here. Neither lifts it: pairs that the policy did not sample teach it little about its own answers;
for those see configs/arithmetic_grpo.py. Other losses and learning rates were not tried here.

Pairs of your own, without a grader: nothing is then sampled, and held-out pairs alone are measured.

  python -m rft_jax.main --config=configs/preferences_dpo.py:pairs.jsonl --workdir=DIR \
    --config.data.validation=held_out.jsonl --config.model.source=HF-DIRECTORY
"""

import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.dpo import DpoConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.preference_losses import PreferenceConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

DATA = 'runs/arithmetic/data'
BASE = 'runs/arithmetic/warmed_up'
MAKE = (
  'python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 '
  '--train_rows=2700 --pairs=1100'
)


def get_config(data: str = DATA) -> configs.Config:
  """Returns the run on a directory with pairs.jsonl, or on a file of pairs of your own.

  Args:
    data: a directory as MAKE fills it: its grader is used beside the held-out pairs. Or a file
      of pairs: then nothing is sampled, and --config.data.validation names the held-out pairs.

  Raises:
    ValueError: there are no pairs.
  """
  path = pathlib.Path(data)
  pairs = path / 'pairs.jsonl' if path.is_dir() or not path.suffix else path
  if not pairs.is_file():
    raise ValueError(f'{pairs}: there are no pairs yet; make them with {MAKE} --to={data}')
  ours = pairs.name == 'pairs.jsonl'
  return configs.Config(
    model=configs.ModelConfig(source=BASE if ours else ''),
    data=DataConfig(
      train=str(pairs), validation=str(pairs.with_name('pairs_validation.jsonl')) if ours else ''
    ),
    chat=ChatConfig(reasoning=('<think>', '</think>') if ours else None),
    grader=str(path / 'grader.json') if ours else '',
    stages=(
      configs.Stage(
        algorithm='dpo', steps=100, optim=OptimConfig(learning_rate=1e-4, warmup_steps=5)
      ),
    ),
    dpo=DpoConfig(
      preference=PreferenceConfig(loss='dpo', beta=0.1, nll_coef=1.0), pairs_per_step=32
    ),
    rollout=RolloutConfig(max_new_tokens=40),
    evaluate=configs.EvaluateConfig(every=25, samples_per_prompt=4),
    checkpoints=configs.CheckpointConfig(every=50),
  )
