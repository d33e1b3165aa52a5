"""GRPO's batch: which rewards, lengths and grader scores each estimator is given."""

import jax
import numpy as np
import pytest
import tiny

import rft_jax
from rft_jax.algorithms import grpo, rl_batch
from rft_jax.data import batching
from rft_jax.errors import InputError
from rft_jax.objectives import masked
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.records import metrics
from rft_jax.run import build
from rft_jax.types import Batch, Episode, Grade, Item, Sample

MULTI = {
  'type': 'multi',
  'name': 'both',
  'calculate_output': 'right + short',
  'graders': {
    'right': {
      'type': 'string_check',
      'name': 'right',
      'operation': 'eq',
      'input': '{{ sample.output_text }}',
      'reference': '{{ item.answer }}',
    },
    'short': {
      'type': 'length',
      'name': 'short',
      'input': '{{ sample.output_text }}',
      'unit': 'characters',
      'soft_limit': 4,
      'hard_limit': 40,
    },
  },
}


def _episode(reward, components, errors=None, tokens=3):
  return Episode(
    Item({}, 'x:1'),
    0,
    0,
    [1],
    Sample([1] * tokens, [0.0] * tokens, None, 'stop'),
    '',
    '',
    0,
    Grade(reward, components, errors or {}),
    0,
  )


@pytest.mark.parametrize('estimator', ['group', 'rloo', 'gpg', 'maxrl', 'pass_at_k', 'best_of_n'])
def test_rewards_are_compared_as_the_estimator_says(estimator):
  rewards = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
  groups = [[_episode(reward, {'x': reward}) for reward in row] for row in rewards]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(
    grpo.advantages(groups, rewards, config), group_advantages(rewards, config)
  )


@pytest.mark.parametrize('estimator', ['opo', 'reinforce_plus_plus'])
def test_lengths_are_those_of_the_samples(estimator):
  groups = [[_episode(0.0, {}, tokens=2), _episode(1.0, {}, tokens=6)]]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(
    grpo.advantages(groups, np.array([[0.0, 1.0]]), config),
    group_advantages([[0.0, 1.0]], config, lengths=[[2, 6]]),
  )


def test_gdpo_compares_grader_by_grader_and_faults_are_paid_for():
  groups = [
    [
      _episode(1.5, {'right': 1.0, 'short': 0.5}),
      _episode(0.25, {'right': 0.0, 'short': 0.25}),
      _episode(-1.0, {}, {'sample_parse_error': True}),
      _episode(1.0, {'right': 1.0, 'short': None}),
    ]
  ]
  config = AdvantageConfig(estimator='gdpo')
  nan = float('nan')
  expected = group_advantages(
    [[[1.0, 0.5], [0.0, 0.25], [-1.0, -1.0], [1.0, nan]]], config, component_weights=[1.0, 1.0]
  )
  found = grpo.advantages(groups, rl_batch.rewards_of(groups, config, 9), config)
  np.testing.assert_array_equal(found, expected)
  assert found[0, 2] < found[0, 1] < found[0, 0]


def test_gdpo_over_one_grader_is_refused_before_anything_is_paid_for(tmp_path):
  config = tiny.config(tmp_path)
  config.advantage.estimator = 'gdpo'
  with pytest.raises(InputError, match='need type multi'):
    with build.components(config):
      pass
  config.grader = MULTI
  with build.components(config) as components:
    assert components.grader.name == 'both'


@pytest.mark.parametrize(
  'config, words',
  [
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='gmpo'), aggregation='token_mean'), 'gmpo'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(ratio_level='sequence')), 'once per token'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='dppo_tv')), 'over the sampler already'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='ppo')), "policy_loss.loss='ppo'"),
    (ObjectiveConfig(correction=CorrectionConfig(cap=0)), 'correction.cap=0'),
    (ObjectiveConfig(aggregation='mean', kl_estimator='k4'), "kl_estimator='k4'"),
  ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(config, words):
  assert any(words in problem for problem in config.validate())


def _batch():
  """Six groups of three, log-probs that differ by policy, and one row without tokens."""
  rng = np.random.default_rng(0)
  P, G, T = 6, 3, 5
  lengths = rng.integers(1, T + 1, P * G).astype(np.int32)
  weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
  weights[4] = 0
  noise = lambda scale: (scale * rng.normal(size=weights.shape)).astype(np.float32)
  group = np.repeat(np.arange(P), G).astype(np.int32)
  old = noise(0.3) - 2
  sampler = old + noise(0.01)
  sampler[7] += 1.0  # one row is far off
  return noise(0.3) - 2, Batch(
    np.zeros((P, 2), np.int32),
    np.ones(P, np.int32),
    np.zeros((P * G, T), np.int32),
    lengths,
    group,
    weights,
    advantages=noise(1.0),
    old_logprobs=old,
    reference_logprobs=noise(0.3) - 2,
    sampler_logprobs=sampler,
    group_tokens=masked.tokens_of_groups(weights, group),
    steps=np.tile(np.arange(T, dtype=np.int32) // 2, (P * G, 1)),
  )


def _sums(config, logprobs, batch, gradient_of=None):
  """Returns the Weighted of each term, or the gradient of its total by the log-probs."""

  def sums(logprobs):
    statistics = TokenStatistics(logprobs, 0 * logprobs, logprobs > 0)
    terms, _ = policy_objective(statistics, batch, config=config, max_new_tokens=5)
    return {name: term.sum for name, term in terms.items()}

  if gradient_of:
    return jax.grad(lambda x: sums(x)[gradient_of].total)(logprobs)
  return sums(logprobs)


ROUTES = [
  (kind, level, aggregation, 'none' if kind in ANCHORED_AT_SAMPLER else 'tis')
  for kind, levels in SUPPORTED.items()
  for level, aggregations in levels.items()
  for aggregation in aggregations
]
ROUTES += [('clip', 'token', 'token_mean', correction) for correction in CORRECTIONS]


@pytest.mark.parametrize('kind, level, aggregation, correction', ROUTES)
def test_every_choice_is_the_same_however_a_step_is_cut(kind, level, aggregation, correction):
  config = ObjectiveConfig(
    policy_loss=PolicyLossConfig(loss=kind, ratio_level=level),
    kl_coef=0.1,
    correction=CorrectionConfig(correction=correction),
    aggregation=aggregation,
  )
  assert not config.validate()
  logprobs, batch = _batch()
  whole = _sums(config, logprobs, batch)
  gradient = _sums(config, logprobs, batch, 'policy')
  assert np.isfinite(gradient).all() and np.abs(gradient).sum() > 0
  added, pieces = None, []
  for groups in ([0, 1, 2], [3, 4, 5]):
    rows = np.isin(batch.group, groups)
    piece = batching.select(batch, np.array(groups))
    sums = _sums(config, logprobs[rows], piece)
    added = sums if added is None else jax.tree.map(np.add, added, sums)
    pieces.append(_sums(config, logprobs[rows], piece, 'policy'))
  for name in whole:
    np.testing.assert_allclose(added[name], whole[name], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(np.concatenate(pieces), gradient, rtol=1e-5, atol=1e-7)


def test_other_losses_train_from_config_to_checkpoint(tmp_path):
  """The route of a config's choices: a tiny run of each family finishes and learns something."""
  config = tiny.config(tmp_path)
  config.stages = config.stages[1:]
  config.stages[0].steps, config.evaluate.every = 1, 0
  config.advantage.scale = 'none'
  for number, (policy_loss, aggregation, correction) in enumerate(
    [
      (PolicyLossConfig(loss='cispo'), 'prompt_mean', 'icepop'),
      (PolicyLossConfig(ratio_level='sequence'), 'sequence_mean', 'tis'),
      (PolicyLossConfig(loss='vespo', ratio_level='product'), 'constant', 'none'),
    ]
  ):
    config.objective = ObjectiveConfig(
      policy_loss=policy_loss,
      aggregation=aggregation,
      correction=CorrectionConfig(correction=correction),
    )
    rft_jax.train(config, tmp_path / str(number), quiet=True)
    (row,) = metrics.read(tmp_path / str(number) / 'metrics.jsonl')
    assert row['grad_norm'] > 0 and row['skipped_nonfinite'] == 0
