"""Combinations of fields that cannot be run, where each field is right on its own."""

import pytest

from rft_jax import config as configs
from rft_jax.config import Config, ModelConfig, Stage
from rft_jax.data.rows import DataConfig


def valid_config(algorithm='grpo'):
  return Config(
    model=ModelConfig(source='base'),
    data=DataConfig(train='hub:rows', validation='hub:rows'),
    grader={'type': 'string_check'},
    stages=(Stage(algorithm=algorithm, steps=2),),
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'stages': ()}, 'stages is empty'),
    ({'grader': ''}, "grader is empty, need OpenAI's grader JSON"),
    (
      {'stages': (Stage(algorithm='reward_model', steps=1), Stage(algorithm='dpo', steps=1))},
      "stages[0].algorithm='reward_model' is not the last stage",
    ),
    ({'rollout.temperature': 0.0}, 'rollout.temperature=0.0, need > 0 for reinforcement'),
    ({'update.updates_per_batch': 17}, 'update.updates_per_batch=17, need <= rollout.prompts_per'),
    (
      {'rollout.quantization': 'int8', 'objective.correction.correction': 'none'},
      "rollout.quantization='int8' with objective.correction.correction='none'",
    ),
    ({'objective.entropy.covariance': 'kl_cov'}, "covariance='kl_cov' with update.updates_per_b"),
    (
      {'objective.policy_loss.ratio_level': 'reasoning_step'},
      "ratio_level='reasoning_step' with credit.level='auto'",
    ),
    (
      {
        'credit.level': 'reasoning_step',
        'objective.kl_coef': 0.1,
        'objective.kl_place': 'reward',
        'advantage.estimator': 'reinforce_plus_plus',
      },
      'the first gives a return to each reasoning step',
    ),
    (
      {'advantage.estimator': 'gdpo', 'noisy_grades.clip': True},
      "advantage.estimator='gdpo' compares the components of a grade, and noisy_grades.clip",
    ),
    ({'rollout.samples_per_prompt': 1}, 'rollout.samples_per_prompt=1, need >= 2 for grpo'),
  ],
)
def test_a_combination_is_refused_with_the_reason(changes, message):
  config = valid_config()
  assert config.problems() == []
  for path, value in changes.items():
    *groups, name = path.split('.')
    group = config
    for part in groups:
      group = getattr(group, part)
    setattr(group, name, value)
  (problem,) = config.problems()
  assert message in problem


def test_a_warm_up_of_the_critic_over_the_whole_stage_is_refused():
  config = valid_config('ppo')
  config.critic.warmup_steps = 2
  (problem,) = config.problems()
  assert 'critic.warmup_steps=2 in a stage of 2 steps, need fewer' in problem


def test_an_unknown_algorithm_lists_those_there_are():
  config = valid_config('grppo')
  (problem,) = config.problems()
  assert problem.startswith("stages[0].algorithm='grppo', need one of ") and "'grpo'" in problem


def test_validate_raises_every_problem_at_once():
  config = valid_config()
  config.rollout.temperature, config.evaluate.rows, config.model.dtype = 0.0, -1, 'float16'
  with pytest.raises(ValueError) as caught:
    config.validate()
  lines = str(caught.value).splitlines()
  assert len(lines) == 3 and all(line.startswith('config.') for line in lines)


def test_spans_count_steps_over_the_whole_run():
  config = valid_config()
  config.stages = (Stage(algorithm='sft', steps=3), Stage(algorithm='dpo', steps=4))
  assert config.spans() == [configs.Span(0, 0, 3), configs.Span(1, 3, 7)]
  assert config.total_steps() == 7 and config.learns_from() == ['targets', 'pairs']
