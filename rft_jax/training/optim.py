"""From an OptimConfig to an optax transformation: clip, optimizer, schedule, decay."""

import dataclasses
import re

import jax
import optax

from rft_jax.sharding import name_of

DECAYED = r'(kernel|embed)$'  # matrices; norms and biases are not decayed


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimConfig:
  """The optimizer of one stage. Its schedule counts optimizer steps from the stage's start."""

  optimizer: str = 'adamw'  # one of OPTIMIZERS
  learning_rate: float = 1e-6  # peak
  schedule: str = 'constant'  # one of SCHEDULES
  warmup_steps: int = 0  # linear; its first step already learns
  final_fraction: float = 0.0  # of the peak, where a decaying schedule ends
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float = 1.0  # of the global gradient, before the optimizer; 0: no clipping

  def validate(self) -> list[str]:
    checks = (
      (
        self.optimizer in OPTIMIZERS,
        f'optimizer={self.optimizer!r}, need one of {tuple(OPTIMIZERS)}',
      ),
      (self.schedule in SCHEDULES, f'schedule={self.schedule!r}, need one of {tuple(SCHEDULES)}'),
      (self.learning_rate >= 0, f'learning_rate={self.learning_rate}, need >= 0'),
      (self.warmup_steps >= 0, f'warmup_steps={self.warmup_steps}, need >= 0'),
      (0 <= self.final_fraction <= 1, f'final_fraction={self.final_fraction}, need 0 to 1'),
      (self.clip_norm >= 0, f'clip_norm={self.clip_norm}, need >= 0 (0: no clipping)'),
    )
    return [problem for good, problem in checks if not good]


def _constant(config, steps):
  return optax.constant_schedule(config.learning_rate)


def _linear(config, steps):
  return optax.linear_schedule(
    config.learning_rate, config.learning_rate * config.final_fraction, max(steps, 1)
  )


def _cosine(config, steps):
  return optax.cosine_decay_schedule(config.learning_rate, max(steps, 1), config.final_fraction)


SCHEDULES = {'constant': _constant, 'linear': _linear, 'cosine': _cosine}


def _adamw(config, schedule):
  return optax.adamw(
    schedule, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay, mask=decayed
  )


def _sgd(config, schedule):
  return optax.sgd(schedule)


OPTIMIZERS = {'adamw': _adamw, 'sgd': _sgd}


def decayed(tree):
  """Returns, leaf by leaf, whether weight decay applies."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(re.search(DECAYED, name_of(path))), tree
  )


def make_schedule(config: OptimConfig, steps: int):
  """Returns optimizer step -> learning rate, for a stage of `steps` optimizer steps."""
  after = SCHEDULES[config.schedule](config, steps - config.warmup_steps)
  if not config.warmup_steps:
    return after
  first = config.learning_rate / (config.warmup_steps + 1)
  ramp = optax.linear_schedule(first, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([ramp, after], [config.warmup_steps])


def make(config: OptimConfig, steps: int) -> optax.GradientTransformation:
  """Returns the optax chain of a stage of `steps` optimizer steps."""
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  return optax.chain(clip, OPTIMIZERS[config.optimizer](config, make_schedule(config, steps)))
