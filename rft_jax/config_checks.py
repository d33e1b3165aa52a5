"""What does not fit together in a Config, where each field is right on its own."""

from rft_jax.algorithms import ALGORITHMS
from rft_jax.algorithms.noisy_grades import corrects
from rft_jax.rollout import credit


def problems(config) -> list[str]:
  """Returns every combination of fields that cannot be run, as 'group.field=value, need ...'."""
  if not config.stages:
    return ['stages is empty, need at least one Stage(algorithm=..., steps=...)']
  checks = [*_stage_checks(config), *_objective_checks(config)]
  if 'prompts' in config.learns_from():
    checks += _rollout_checks(config)
  stages = [stage for stage in config.stages if stage.algorithm in ALGORITHMS]
  levels = {stage.algorithm: config.requirements(stage).credit_levels for stage in stages}
  groups = config.groups()
  algorithm_problems = [
    problem
    for stage in stages
    for problem in config.requirements(stage).problems(groups, stage.steps)
  ]
  return (
    [problem for good, problem in checks if not good]
    + credit.problems(config.credit, levels)
    + list(dict.fromkeys(algorithm_problems))
  )


def _stage_checks(config):
  last = len(config.stages) - 1
  for number, stage in enumerate(config.stages):
    yield (
      number == last or not config.trains_reward_model(stage),
      f'stages[{number}].algorithm={stage.algorithm!r} is not the last stage, need it there: the '
      'policy becomes the trunk of the reward model and is no longer a language model; train from '
      'its export in another run',
    )
  yield (
    config.grader or config.ungraded(),
    "grader is empty, need OpenAI's grader JSON (a dict or a path): held-out rows are graded with "
    'it',
  )


def _rollout_checks(config):
  """Checks of runs in which a stage samples."""
  rollout, update = config.rollout, config.update
  return [
    (
      rollout.temperature > 0,
      f'rollout.temperature={rollout.temperature}, need > 0 for reinforcement: greedy samples of a '
      'prompt are all the same',
    ),
    (
      update.updates_per_batch <= rollout.prompts_per_step,
      f'update.updates_per_batch={update.updates_per_batch}, need <= '
      f'rollout.prompts_per_step={rollout.prompts_per_step}: each update takes whole groups',
    ),
    (
      rollout.quantization == 'none' or config.objective.correction.correction != 'none',
      f'rollout.quantization={rollout.quantization!r} with '
      "objective.correction.correction='none', need a correction ('tis' is usual): samples of a "
      "rounded policy would count as the policy's own",
    ),
    (
      config.objective.entropy.covariance != 'kl_cov' or update.updates_per_batch > 1,
      "objective.entropy.covariance='kl_cov' with update.updates_per_batch=1, need more: its KL is "
      'to the policy before the first update, and is 0 in that update',
    ),
  ]


def _objective_checks(config):
  """Checks of advantage, credit and objective."""
  objective, by_step = config.objective, config.credit.level == 'reasoning_step'
  return [
    (
      objective.policy_loss.ratio_level != 'reasoning_step' or by_step,
      "objective.policy_loss.ratio_level='reasoning_step' with "
      f"credit.level={config.credit.level!r}, need credit.level='reasoning_step': only then are "
      'completions split into steps',
    ),
    (
      not by_step
      or not objective.kl_in_reward
      or config.advantage.estimator != 'reinforce_plus_plus',
      "credit.level='reasoning_step' with objective.kl_place='reward' and "
      "advantage.estimator='reinforce_plus_plus': the first gives a return to each reasoning step, "
      'the others to each token',
    ),
    (
      config.advantage.estimator != 'gdpo'
      or not (
        corrects(config.noisy_grades) or objective.kl_in_reward or config.advantage.overlong_buffer
      ),
      "advantage.estimator='gdpo' compares the components of a grade, and noisy_grades.clip, "
      "noisy_grades.flip_rate_*, objective.kl_place='reward' and advantage.overlong_buffer change "
      'the grade as a whole: use one of the two',
    ),
  ]
