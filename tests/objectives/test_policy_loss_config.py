"""Settings of the policy loss, and which losses, ratio levels and aggregations can be combined."""

import dataclasses
import itertools

import pytest

from rft_jax.objectives import importance_ratios, masked, policy_losses
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig, incompatibilities
from rft_jax.objectives.policy_losses import LOSSES, clip_widths


def test_every_loss_is_in_the_table_and_every_entry_exists():
  assert set(SUPPORTED) == set(LOSSES)
  for levels in SUPPORTED.values():
    assert levels and set(levels) <= set(importance_ratios.LEVEL_NAMES)
    for aggregations in levels.values():
      assert aggregations and set(aggregations) <= set(masked.AGGREGATIONS)
  assert set(policy_losses.ANCHORED_AT_SAMPLER) <= set(LOSSES)


def test_a_combination_is_supported_or_refused_with_a_reason():
  offenders = []
  for loss, level, aggregation in itertools.product(
    LOSSES, importance_ratios.LEVEL_NAMES, masked.AGGREGATIONS
  ):
    reasons = incompatibilities(loss, level, aggregation)
    is_supported = aggregation in SUPPORTED[loss].get(level, ())
    if bool(reasons) == is_supported or not all(
      loss in reason and 'need one of' in reason for reason in reasons
    ):
      offenders.append((loss, level, aggregation, reasons))
  assert not offenders


@pytest.mark.parametrize(
  'loss, level, aggregation, message',
  [
    ('clip', 'sequence', 'token_mean', 'long completions more'),
    ('gmpo', 'sequence', 'sequence_mean', 'takes the mean over the sequence'),
    ('cispo', 'none', 'token_mean', 'no bound is ever active'),
    ('policy_gradient', 'token', 'token_mean', 'unclipped'),
    ('luspo', 'sequence', 'sequence_mean', '1 / length'),
  ],
)
def test_reasons(loss, level, aggregation, message):
  assert message in incompatibilities(loss, level, aggregation)[0]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'loss': 'ppo'}, "loss='ppo'"),
    ({'ratio_level': 'word'}, "ratio_level='word'"),
    ({'clip_low': 1.5}, 'clip_low=1.5'),
    ({'clip_high': -0.1}, 'clip_high=-0.1'),
    ({'dual_clip': 1.2}, 'above 1 + clip_high=1.28'),
    ({'delta': 1.0}, 'delta=1.0'),
    ({'delta': 4.0, 'dual_clip': 3.0}, 'set one to 0'),
    ({'loss': 'cispo', 'cispo_high_level': 0.28}, 'largest weight itself'),
    ({'cispo_low_width': 2.0}, 'cispo_low_width=2.0'),
    ({'sapo_tau_positive': 0.0}, 'sapo_tau'),
    ({'dppo_low': 0.0}, 'dppo_low=0.0'),
  ],
)
def test_settings_out_of_range_are_named(changes, message):
  problems = PolicyLossConfig(**changes).validate()
  assert len(problems) == 1 and message in problems[0]


def test_clip_widths_are_the_published_ones_unless_set():
  assert PolicyLossConfig().validate() == []
  assert clip_widths(PolicyLossConfig()) == (0.2, 0.28)
  gspo = PolicyLossConfig(ratio_level='sequence')
  assert clip_widths(gspo) == (3e-4, 4e-4)
  assert clip_widths(dataclasses.replace(gspo, clip_low=0.1)) == (0.1, 4e-4)
  assert all(level in SUPPORTED[loss] for loss, level in policy_losses.DEFAULT_WIDTHS)
  assert incompatibilities('clip', 'token', 'token_mean') == []
