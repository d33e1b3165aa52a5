"""Compares our losses and gradients with those of TRL on the same log-probs, masks and rewards.

  python scripts/compare_trl.py --peer-python=PATH

PATH is a Python with torch and TRL 1.16 (pip install trl torch); it runs scripts/trl_losses.py,
which calls the trainers' own methods. Both sides compute in float64 and exchange files. A row is ok
if loss and gradient agree to 1e-6 relative (the gradient: largest difference over largest entry),
explained if EXPLAINED has the reason, and else DIFFERS, with exit code 1.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives import kl, masked, policy_losses, unpaired_losses
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.importance_ratios import LEVELS
from rft_jax.objectives.policy_loss_config import PolicyLossConfig
from rft_jax.objectives.preference_objective import PreferenceConfig, pair_losses
from rft_jax.objectives.preference_pairs import chosen_nll, over_pairs, pair, sequence_sums
from rft_jax.objectives.reward_model_losses import bradley_terry

PEER = pathlib.Path(__file__).with_name('trl_losses.py')
TOLERANCE = 1e-6
G = 4  # samples per prompt
CLIP = {'clip_low': 0.2, 'clip_high': 0.28}
# Where TRL rounds; used only if a row is not ok. Our advantages are float32, which causes the 1e-7
# in the rows of groups. Not compared, since it differs by design: to ORPO, TRL adds the NLL of
# prompt and completion, we add that of the completion.
EXPLAINED = {
  'orpo': 'TRL rounds its log-probs to float32 before the odds',
  'f-dpo alpha': 'TRL has no float64 here, so its side is float32 throughout',
}


def inputs(seed=0, P=4, T=12) -> dict[str, np.ndarray]:
  """Returns random log-probs of P * G completions, and the other inputs of both sides."""
  rng = np.random.default_rng(seed)
  B = P * G
  lengths = rng.integers(2, T + 1, B)
  lengths[0] = T
  logprobs = -rng.exponential(1.2, (B, T)) - 0.05
  rewards = rng.integers(0, 5, (P, G)) / 4
  rewards[-1] = 0.5  # a zero-variance group
  rows = np.arange(B).reshape(-1, 2)
  return {
    'logprobs': logprobs,
    'old': logprobs + 0.15 * rng.normal(size=(B, T)),
    'reference': logprobs + 0.4 * rng.normal(size=(B, T)),
    'mask': (np.arange(T) < lengths[:, None]).astype(float),
    'rewards': rewards,
    'chosen': rows[:, 0],
    'rejected': rows[:, 1],
    'margin': rng.random(len(rows)),
    'desirable': (rng.random(B) < 0.6).astype(float),
    'mismatched': 1 + rng.normal(size=B),
    'G': np.array(G),
  }


def mean(sums):
  return sums.total / sums.weight


# ------------------------------------------------------------------ our side: preferences


def paired(x, arrays, **settings):
  config = PreferenceConfig(**settings)
  sums = pair_losses(
    x, arrays['reference'], arrays['mask'], arrays['chosen'], arrays['rejected'], config=config
  )
  return mean(over_pairs(sums.losses, sums.present))


def sft(x, arrays):
  return mean(chosen_nll(x, arrays['mask'], arrays['chosen']))


def aot(x, arrays, *, paired, beta=0.1):
  sums = lambda x: pair(sequence_sums(x, arrays['mask']), arrays['chosen'], arrays['rejected'])
  (x_w, x_l), (ref_w, ref_l) = sums(x), sums(arrays['reference'])
  sides = (x_w - x_l, ref_w - ref_l) if paired else (x_w - ref_w, x_l - ref_l)
  return mean(over_pairs(*unpaired_losses.aot(*sides, jnp.ones(len(x_w)), beta=beta)))


def kto(x, arrays, **settings):
  z = unpaired_losses.kto_reference_point(
    masked.Weighted(arrays['mismatched'].sum(), jnp.float64(len(x)))
  )
  return unpaired_losses.kto(
    sequence_sums(x - arrays['reference'], arrays['mask']),
    arrays['desirable'] > 0,
    z,
    config=unpaired_losses.KtoConfig(**settings),
  ).mean()


def reward(x, arrays, *, margin=False, centring=0.0):
  return bradley_terry(
    *pair(x[:, 0], arrays['chosen'], arrays['rejected']),
    centring=centring,
    margin=arrays['margin'] if margin else 0.0,
  ).mean()


# ------------------------------------------------------------------ our side: groups


def advantages(rewards, arrays, **settings):
  """A of each token, [B, T]."""
  each = group_advantages(np.asarray(rewards).reshape(-1, G), AdvantageConfig(**settings))
  return jnp.asarray(each.reshape(-1, 1)) * jnp.ones_like(arrays['mask'])


def group(x, arrays, *, scale='group', aggregate=masked.over_sequences, beta=0.0, **settings):
  """The policy loss with its advantages, ratio level, aggregation and KL term."""
  weights, old = arrays['mask'], arrays['old']
  config = PolicyLossConfig(**CLIP | settings)
  A = advantages(arrays['rewards'], arrays, scale=scale)
  ratio = LEVELS[config.ratio_level](x, old, weights)
  values, _ = policy_losses.LOSSES[config.loss](x, old, ratio, A, weights, config=config)
  if beta:
    values = values + beta * kl.k3(x, arrays['reference'])
  return mean(aggregate(values, weights))


def rloo(x, arrays, *, beta=0.0):
  """RLOO: one importance ratio per completion, the product over tokens; KL (k1) in the reward."""
  weights, old = arrays['mask'], arrays['old']
  kl_sums = sequence_sums(kl.k1(old, arrays['reference']), weights)
  A = advantages(arrays['rewards'].reshape(-1) - beta * kl_sums, arrays, estimator='rloo')
  ratio = LEVELS['product'](x, old, weights)
  values, _ = policy_losses.clip(
    x, old, ratio, A, weights, config=PolicyLossConfig(ratio_level='product', **CLIP)
  )
  return mean(masked.over_sequences(values, weights))


# ------------------------------------------------------------------ the cases


def preference_cases():
  """Yields (name, kind for scripts/trl_losses.py, its settings, our function)."""
  part = functools.partial
  smooth = {'label_smoothing': 0.1}
  for ours, theirs, beta, options in (
    ('dpo', 'sigmoid', 0.1, {}),
    ('dpo', 'sigmoid', 0.3, {}),
    ('hinge', 'hinge', 0.1, {}),
    ('ipo_mean', 'ipo', 0.1, {}),
    ('robust', 'robust', 0.1, smooth),
    ('exo', 'exo_pair', 0.1, smooth),
    ('nca', 'nca_pair', 0.1, {}),
    ('bco', 'bco_pair', 0.1, {}),
    ('sppo', 'sppo_hard', 0.1, {}),
    ('apo_zero', 'apo_zero', 0.1, {}),
    ('apo_down', 'apo_down', 0.1, {}),
    ('discopop', 'discopop', 0.1, {}),
    ('dpo_mean', 'sigmoid_norm', 2.0, {}),
  ):
    yield (
      f'{ours}, beta {beta}',
      'dpo',
      {'loss_type': theirs, 'beta': beta, **options},
      part(paired, loss=ours, beta=beta, **options),
    )
  for ours, theirs in (
    ('forward_kl', 'forward_kl'),
    ('js', 'js_divergence'),
    ('alpha', 'alpha_divergence'),
  ):
    yield (
      f'f-dpo {ours}',
      'dpo',
      {
        'loss_type': 'sigmoid',
        'beta': 0.1,
        'f_divergence_type': theirs,
        'f_alpha_divergence_coef': 0.5,
        'float32': ours == 'alpha',
      },
      part(paired, divergence=ours, alpha=0.5),
    )
  for name in ('aot', 'aot_unpaired'):
    yield name, 'dpo', {'loss_type': name, 'beta': 0.1}, part(aot, paired=name == 'aot')
  yield 'NLL of the chosen', 'dpo', {'loss_type': 'sft', 'beta': 0.1}, sft
  yield (
    'cpo',
    'cpo',
    {'loss_type': 'sigmoid', 'beta': 0.1, **smooth},
    part(paired, loss='cpo', **smooth),
  )
  yield (
    'simpo',
    'cpo',
    {'loss_type': 'simpo', 'beta': 2.0, 'simpo_gamma': 0.7},
    part(paired, loss='simpo', beta=2.0, gamma=0.7),
  )
  yield 'orpo', 'orpo', {'beta': 0.1}, part(paired, loss='orpo')
  weights = {'beta': 0.1, 'desirable_weight': 1.5, 'undesirable_weight': 0.8}
  yield 'kto', 'kto', weights, part(kto, **weights)
  for name, settings in (
    ('reward model', {}),
    ('reward model, margin', {'margin': True}),
    ('reward model, centred', {'centring': 0.01}),
  ):
    yield name, 'reward', settings, part(reward, **settings)


def group_cases():
  """Yields the same for the losses of groups of samples."""
  part = functools.partial
  constant = part(masked.over_constant, length=12)
  for name, aggregate in (
    ('grpo', masked.over_sequences),
    ('bnpo', masked.over_tokens),
    ('dr_grpo', constant),
    ('dapo', masked.over_tokens),
  ):
    for scale in ('group', 'batch', 'none'):
      yield (
        f'{name}, scale {scale}',
        'grpo',
        {'loss_type': name, 'scale_rewards': scale},
        part(group, scale=scale, aggregate=aggregate),
      )
  yield 'grpo, KL (k3) 0.04', 'grpo', {'beta': 0.04}, part(group, beta=0.04)
  yield (
    'grpo, sequence level',
    'grpo',
    {'importance_sampling_level': 'sequence'},
    part(group, ratio_level='sequence'),
  )
  yield (
    'cispo, level 1.2',
    'grpo',
    {'loss_type': 'cispo', 'epsilon_high': 1.2},
    part(group, loss='cispo', cispo_high_level=1.2, aggregate=masked.over_tokens),
  )
  yield ('sapo', 'grpo', {'loss_type': 'sapo'}, part(group, loss='sapo'))
  yield 'rloo', 'rloo', {}, rloo
  yield 'rloo, KL (k1) 0.05', 'rloo', {'beta': 0.05}, part(rloo, beta=0.05)


def run_trl(python, trl_cases, data, folder):
  """Runs scripts/trl_losses.py and returns its arrays."""
  folder = pathlib.Path(folder)
  folder.joinpath('cases.json').write_text(json.dumps(trl_cases), encoding='utf-8')
  np.savez(folder / 'in.npz', **data)
  files = [str(folder / name) for name in ('cases.json', 'in.npz', 'out.npz')]
  subprocess.run([python, str(PEER), *files], check=True)
  return dict(np.load(files[2]))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--peer-python', required=True, help='a Python with torch and TRL')
  args = parser.parse_args()
  jax.config.update('jax_enable_x64', True)
  data = inputs()
  rows = [*preference_cases(), *group_cases()]
  with tempfile.TemporaryDirectory() as folder:
    theirs = run_trl(args.peer_python, [row[:3] for row in rows], data, folder)
  arrays = {name: jnp.asarray(value) for name, value in data.items()} | {'rewards': data['rewards']}
  print(f'TRL {theirs["version"]}\n{"":26}{"loss":>12}{"|d| rel.":>10}{"grad |d|":>10}')
  differs = 0
  for name, _, _, ours in rows:
    loss, gradient = theirs[f'{name}/loss'], theirs[f'{name}/gradient']
    our_loss, our_gradient = jax.value_and_grad(ours)(arrays['logprobs'], arrays)
    loss_error = abs(float(our_loss) - loss) / abs(loss)
    gradient_error = np.abs(our_gradient - gradient).max() / np.abs(gradient).max()
    agrees = max(loss_error, gradient_error) <= TOLERANCE
    verdict = (
      'ok' if agrees else f'explained: {EXPLAINED[name]}' if name in EXPLAINED else 'DIFFERS'
    )
    differs += verdict == 'DIFFERS'
    print(f'{name:26}{float(loss):12.6f}{loss_error:10.1e}{gradient_error:10.1e}  {verdict}')
  sys.exit(1 if differs else 0)


if __name__ == '__main__':
  main()
