"""Configuration of the policy loss: its settings, and which combinations are supported."""

import dataclasses

from rft_jax.objectives import importance_ratios
from rft_jax.objectives.masked import AGGREGATIONS
from rft_jax.objectives.policy_losses import LOSSES, clip_widths


@dataclasses.dataclass(slots=True, kw_only=True)
class PolicyLossConfig:
  """The policy loss: its kind, the level of its ratio, and the bounds of that kind."""

  loss: str = 'clip'  # clip (PPO, GRPO, DAPO, GSPO), policy_gradient, cispo, gmpo, sapo, ...
  ratio_level: str = 'token'  # token, reasoning_step, sequence, sequence_token, product, none
  clip_low: float | None = None  # the gradient stops below 1 - clip_low; None: as published
  clip_high: float | None = None  # and above 1 + clip_high; of gmpo, both in the log
  dual_clip: float = 0.0  # clip: where A < 0 the loss is at most -dual_clip A; 0: off, 3 is usual
  delta: float = 0.0  # clip: the ratio is at most this also where A < 0; 0: off, 4 is usual
  cispo_high_level: float = 5.0  # cispo: the largest weight; a level, not a width around 1
  cispo_low_width: float = 1.0  # cispo: the smallest weight is 1 - this; 1: off
  sapo_tau_positive: float = 1.0  # sapo: how fast the gradient fades off r = 1, where A > 0
  sapo_tau_negative: float = 1.05  # and where A <= 0
  vespo_power_positive: float = 2.0  # vespo: weight w^power exp(rate (1 - w)), where A >= 0
  vespo_rate_positive: float = 3.0
  vespo_power_negative: float = 3.0  # and where A < 0
  vespo_rate_negative: float = 2.0
  dppo_low: float = 0.2  # dppo_tv: how far a probability may fall where A < 0
  dppo_high: float = 0.2  # and rise where A > 0

  def validate(self) -> list[str]:
    low, high = clip_widths(self)
    positive = (
      'cispo_high_level',
      'sapo_tau_positive',
      'sapo_tau_negative',
      'vespo_power_positive',
      'vespo_rate_positive',
      'vespo_power_negative',
      'vespo_rate_negative',
      'dppo_low',
      'dppo_high',
    )
    checks = [
      (self.loss in LOSSES, f'loss={self.loss!r}, need one of {tuple(LOSSES)}'),
      (
        self.ratio_level in importance_ratios.LEVEL_NAMES,
        f'ratio_level={self.ratio_level!r}, need one of {importance_ratios.LEVEL_NAMES}',
      ),
      (low >= 0 and (low <= 1 or self.loss == 'gmpo'), f'clip_low={low}, need 0 to 1'),
      (high >= 0, f'clip_high={high}, need >= 0'),
      (
        self.dual_clip == 0 or self.dual_clip > 1 + high,
        f'dual_clip={self.dual_clip}, need above 1 + clip_high={1 + high} (0: off)',
      ),
      (
        self.delta == 0 or self.delta > 1 + high,
        f'delta={self.delta}, need above 1 + clip_high={1 + high} (0: off)',
      ),
      (
        not (self.dual_clip and self.delta),
        f'dual_clip={self.dual_clip} and delta={self.delta} bound the same tokens: set one to 0',
      ),
      (
        0 <= self.cispo_low_width <= 1,
        f'cispo_low_width={self.cispo_low_width}, need 0 to 1 (1: off)',
      ),
      (
        self.cispo_high_level >= 1,
        f'cispo_high_level={self.cispo_high_level}, need >= 1: '
        'it is the largest weight itself, 1 plus a width',
      ),
      *((getattr(self, name) > 0, f'{name}={getattr(self, name)}, need > 0') for name in positive),
    ]
    return [problem for good, problem in checks if not good]


_ALL = tuple(AGGREGATIONS)
_PER_SEQUENCE = ('sequence_mean',)
_SUMS = ('token_mean', 'sequence_sum', 'constant')

# loss -> ratio level -> aggregations. Others are refused, with a reason from incompatibilities().
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
  'clip': {
    'token': _ALL,
    'sequence': _PER_SEQUENCE,
    'sequence_token': _ALL,
    'product': _PER_SEQUENCE,
    'reasoning_step': _ALL,
  },
  'policy_gradient': {'none': _ALL},
  'unclipped': {
    'token': _ALL,
    'sequence': _PER_SEQUENCE,
    'sequence_token': _ALL,
    'product': _PER_SEQUENCE,
    'none': _ALL,
    'reasoning_step': _ALL,
  },
  'cispo': {'token': _ALL},
  'gmpo': {'token': _PER_SEQUENCE},
  'sapo': {'token': _ALL},
  'vespo': {'product': _SUMS},
  'luspo': {'sequence': ('sequence_sum', 'constant')},
  'dppo_tv': {'token': _ALL},
}


def incompatibilities(loss: str, ratio_level: str, aggregation: str) -> list[str]:
  """Returns why these three cannot be combined, each of them a known name; [] if they can."""
  levels = SUPPORTED[loss]
  if ratio_level in levels:
    if aggregation in levels[ratio_level]:
      return []
    return [
      f'aggregation={aggregation!r} with loss={loss!r} and ratio_level={ratio_level!r}: '
      f'{_aggregation_reason(loss, ratio_level)}; need one of {levels[ratio_level]}'
    ]
  return [
    f'ratio_level={ratio_level!r} with loss={loss!r}: {_level_reason(loss, ratio_level)}; '
    f'need one of {tuple(levels)}'
  ]


def couples_tokens(loss: str, ratio_level: str) -> bool:
  """Returns whether the loss of one token has a gradient by log-probs of others of its sequence."""
  coupled_levels = ('reasoning_step', 'sequence', 'product')
  return loss == 'gmpo' or loss != 'vespo' and ratio_level in coupled_levels


def _aggregation_reason(loss, ratio_level):
  if loss == 'luspo':
    return 'luspo is GSPO without the factor 1 / length, so its tokens are summed, not averaged'
  if loss == 'vespo':
    return 'vespo weights the sum of log-probs of a whole completion, not their mean'
  if loss == 'gmpo':
    return 'gmpo has one loss for the whole completion, and sums would count it once per token'
  return (
    f'a ratio of level {ratio_level} is the same for the whole completion, and sums over tokens '
    'would count it once per token, long completions more (if that is intended, use luspo)'
  )


def _level_reason(loss, ratio_level):
  if loss == 'policy_gradient':
    return 'policy_gradient has no ratio; the same loss with a ratio is unclipped'
  if ratio_level == 'none':
    return 'the ratio is always 1, so that no bound is ever active: that is policy_gradient'
  if loss == 'gmpo':
    return 'gmpo itself takes the mean over the sequence, of ratios of tokens'
  if loss in ('luspo', 'vespo'):
    return f'{loss} is defined on ratios of whole completions'
  return f'{loss} is defined on ratios of tokens'
