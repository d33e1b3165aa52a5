r"""Policy-gradient objectives and credit assignment compared on arithmetic chains of 3 operations.

  python scripts/compare_objectives.py --to=runs/objectives

writes the rows, trains the one warm-up model, and then every arm with seeds 0, 1 and 2, each as

  python -m rft_jax.main --config=configs/arithmetic_objectives.py:ARM --workdir=...

All arms start from the same policy, an SFT warm-up on 2400 sums with their lines, and train on 1000
other sums from the grades alone. Sampling is the same in all of them: 64 sums, 8 completions each;
two updates per batch, so that importance ratios differ from 1 and clipping is active.
A learning rate of 2e-4 for all, tuned on grpo alone; 80 steps lifted a little more than 60.

Hardware: two cores of an AMD EPYC; programs compiled by an earlier arm are taken from the cache.
Seconds are of the fastest seed, evaluations included. Grade: of 4 samples of each of 300 held-out
sums, 0.352, 0.331 and 0.337 before, by seed; 95 % intervals resample seeds and rows; "- response"
is paired by row and seed.

  arm             seconds  tokens  lift                     - response
  grpo                 64  0.78 M  +0.089 [+0.061, +0.118]  +0.010 [-0.018, +0.040]
  dr_grpo              76  0.78 M  +0.088 [+0.043, +0.129]  +0.008 [-0.016, +0.031]
  dapo                 97  1.56 M  +0.127 [+0.088, +0.166]  +0.048 [+0.023, +0.076]
  gspo                 78  0.78 M  +0.081 [+0.044, +0.117]  +0.001 [-0.018, +0.021]
  cispo                74  0.78 M  +0.077 [+0.039, +0.114]  -0.003 [-0.027, +0.024]
  rloo                 74  0.78 M  +0.066 [+0.024, +0.108]  -0.013 [-0.044, +0.020]
  reinforce++          80  0.78 M  +0.077 [+0.047, +0.108]  -0.003 [-0.024, +0.021]
  ppo, token          129  0.78 M  +0.087 [+0.055, +0.119]  +0.007 [-0.015, +0.032]
  ppo, step           145  0.78 M  +0.106 [+0.075, +0.136]  +0.026 [-0.003, +0.061]
  ppo, response       130  0.78 M  +0.082 [+0.047, +0.118]  +0.003 [-0.022, +0.028]
  response             61  0.78 M  +0.079 [+0.043, +0.115]
  step, process        87  0.78 M  +0.127 [+0.088, +0.166]  +0.047 [+0.023, +0.072]
  step, prefix         96  0.78 M  +0.075 [+0.039, +0.108]  -0.004 [-0.029, +0.019]
  step, resample      139  1.17 M  +0.095 [+0.062, +0.131]  +0.016 [-0.010, +0.042]

All arms improve. With one grade per completion, losses and advantage estimators cannot be told
apart in 60 steps. What helps is more information (a grade for each line) or fewer zero-variance
groups: dapo samples a second batch of prompts and fills the step with groups whose grades differ.
Why credit from prefixes gives less than grades of the same single lines was not investigated. In
the resample arm, samples in the same state share their resampled completions; before they did,
that arm took 246 s and 2.52 M tokens.

What did not work: learning rates of 3e-4 and 5e-4 for grpo, +0.061 and +0.009 in 60 steps (seed 0).
"""

import dataclasses
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.objectives.policy_loss_config import PolicyLossConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.rollout.credit import CreditConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.tasks import chains
from rft_jax.training.optim import OptimConfig

FOLDER = 'runs/objectives'
MAKE = 'python -m rft_jax.tasks chains --largest_term=5 --train_rows=3400'
WARM_UP_ROWS = 2400  # rows for SFT; the others are for reinforcement
WARM_UP_STEPS = 300
STEPS = 60

# Grade of a partial solution: right lines so far / number of operations.
PREFIX_GRADER = {
  'type': 'python',
  'name': 'right_lines',
  'source': chains.STEP_GRADER['source'].replace('def grade(', 'def line_grade(')
  + """

def grade(sample, item):
  lines, before, right = sample['output_text'].split('\\n'), [], 0.0
  for line in lines:
    step = {'before': '\\n'.join(before)}
    right += line_grade({'output_text': line},
                        {'messages': item['messages'], 'reasoning_step': step})
    before.append(line)
  return right / (len(item['messages'][-1]['content'].split()) // 2)
""",
}


def _objective(loss, level='token', aggregation='token_mean'):
  return ObjectiveConfig(
    policy_loss=PolicyLossConfig(loss=loss, ratio_level=level), aggregation=aggregation
  )


def _step_credit(source, **settings):
  return CreditConfig(level='reasoning_step', step_boundary='line', source=source, **settings)


_PROCESS = _step_credit('process', grader=chains.STEP_GRADER)
# Advantages are not divided by the std of the group, since step credit does not divide either.
_UNSCALED = AdvantageConfig(scale='none')
_PPO = dict(
  algorithm='ppo',
  critic=CriticConfig(warmup_steps=5, gae_lambda=1.0, optim=OptimConfig(learning_rate=1e-3)),
)

# Arm -> what it changes: groups of the config, or fields of `rollout`.
ARMS = {
  'grpo': {},
  'dr_grpo': dict(advantage=_UNSCALED, objective=_objective('clip', aggregation='constant')),
  'dapo': dict(
    advantage=AdvantageConfig(overlong_buffer=8), rollout=dict(dynamic_sampling_rounds=1)
  ),
  'gspo': dict(objective=_objective('clip', 'sequence', 'sequence_mean')),
  'cispo': dict(objective=_objective('cispo')),
  'rloo': dict(
    advantage=AdvantageConfig(estimator='rloo'),
    objective=_objective('unclipped', 'token', 'sequence_sum'),
  ),
  'reinforce++': dict(advantage=AdvantageConfig(estimator='reinforce_plus_plus')),
  'ppo, token': dict(_PPO),
  'ppo, step': dict(_PPO, credit=_PROCESS),
  'ppo, response': dict(_PPO, credit=CreditConfig(level='response')),
  'response': dict(advantage=_UNSCALED),
  'step, process': dict(advantage=_UNSCALED, credit=_PROCESS),
  'step, prefix': dict(advantage=_UNSCALED, credit=_step_credit('prefix', grader=PREFIX_GRADER)),
  'step, resample': dict(advantage=_UNSCALED, credit=_step_credit('resample', resamples=2)),
}


def get_config(argument: str = 'grpo') -> configs.Config:
  """Returns the run of one arm, 'ARM' or 'ARM:FOLDER'; 'warm_up' trains the initial model.

  Raises:
    ValueError: there is no such arm, or the rows or the warm-up model are missing.
  """
  arm, _, folder = argument.partition(':')
  folder = folder or FOLDER
  if arm not in ('warm_up', *ARMS):
    raise ValueError(f'arm {arm!r}, need one of {("warm_up", *ARMS)}')
  data = pathlib.Path(folder, 'data')
  if not (data / 'train.jsonl').is_file():
    raise ValueError(f'{data}/train.jsonl is missing; write it with {MAKE} --to={data}')
  if arm == 'warm_up':
    return _run(
      folder,
      f'{data}/base',
      _write_rows(data, 'shown', slice(WARM_UP_ROWS)),
      configs.Stage(
        algorithm='sft',
        steps=WARM_UP_STEPS,
        optim=OptimConfig(
          learning_rate=3e-3, schedule='cosine', warmup_steps=10, final_fraction=0.1
        ),
      ),
    )
  policy = pathlib.Path(folder, 'warm_up', 'export')
  if not policy.is_dir():
    raise ValueError(
      f'{policy} is missing; run --config=configs/arithmetic_objectives.py:warm_up '
      f'--workdir={folder}/warm_up'
    )
  changes = dict(ARMS[arm])
  stage = configs.Stage(
    algorithm=changes.pop('algorithm', 'grpo'),
    steps=STEPS,
    optim=OptimConfig(learning_rate=2e-4, warmup_steps=3),
  )
  rows = _write_rows(data, 'answers', slice(WARM_UP_ROWS, None))
  return _run(folder, policy, rows, stage, **changes)


def _write_rows(data, name, selection):
  """Writes the selected rows of train.jsonl to NAME.jsonl, if it is missing; returns its path."""
  rows = (data / 'train.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)
  if len(rows) <= WARM_UP_ROWS:
    raise ValueError(
      f'{data}/train.jsonl has {len(rows)} rows, need more than the '
      f'{WARM_UP_ROWS} of the warm-up: {MAKE} --to={data}'
    )
  path = data / f'{name}.jsonl'
  if not path.is_file():
    path.write_text(''.join(rows[selection]), encoding='utf-8')
  return path


def _run(folder, source, rows, stage, rollout=None, **changes):
  sampling = RolloutConfig(prompts_per_step=64, samples_per_prompt=8, max_new_tokens=64)
  return configs.Config(
    model=configs.ModelConfig(source=str(source)),
    data=DataConfig(train=str(rows), validation=f'{folder}/data/validation.jsonl'),
    chat=ChatConfig(reasoning=('<think>', '</think>')),
    grader=f'{folder}/data/grader.json',
    stages=(stage,),
    sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
    rollout=dataclasses.replace(sampling, **(rollout or {})),
    update=configs.UpdateConfig(updates_per_batch=2 if stage.algorithm != 'sft' else 1),
    evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
    checkpoints=configs.CheckpointConfig(every=0),
    **changes,
  )
