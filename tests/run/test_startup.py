"""The start of a run: restored and initial states, and the printed summary."""

import jax
import numpy as np

from rft_jax import models, sharding
from rft_jax.algorithms.rl_batch import RLState
from rft_jax.config import Stage
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build, startup
from rft_jax.types import TrainState


def restored(config, components, workdir):
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
  return startup.restore_or_init(config, components, checkpoints)


def test_without_a_checkpoint_the_base_model_is_loaded(config, tmp_path):
  with build.components(config) as components:
    state, stage, tokens = restored(config, components, tmp_path)
  assert (state.step, stage, tokens) == (0, -1, 0)
  assert state.optimizer is None and state.algorithm_state is None


def test_the_newest_checkpoint_is_restored_with_optimizer_and_algorithm_state(
  config, finished, tmp_path
):
  Checkpoints(tmp_path / 'checkpoints').directory.mkdir(parents=True)
  (tmp_path / 'checkpoints' / 'step_000004').symlink_to(finished / 'checkpoints' / 'step_000004')
  with build.components(config) as components:
    state, stage, tokens = restored(config, components, tmp_path)
  assert (state.step, stage) == (4, 1) and tokens > 0
  assert state.algorithm_state == RLState(position=config.rollout.prompts_per_step)
  counts = [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
    if sharding.name_of(path).endswith('count')
  ]
  assert set(counts) == {2}  # one step of the stage, two updates


def test_after_the_last_step_of_a_stage_the_policy_alone_is_restored(config, finished):
  with build.components(config) as components:
    state, stage, _ = restored(config, components, finished)
    assert (state.step, stage) == (6, -1) and state.optimizer is None
    fresh = startup.init_stage_state(config, config.stages[1], state, components.mesh)
  assert set(fresh.optimizer) == {'policy'} and fresh.algorithm_state == RLState()
  pairs = zip(jax.tree.leaves(fresh.policy), jax.tree.leaves(state.policy))
  assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_stage_with_a_critic_has_two_optimizers(config):
  stage = Stage(algorithm='ppo', steps=1)
  optimizers = startup.stage_optimizers(config, stage)
  assert optimizers == {'policy': stage.optim, 'critic': config.critic.optim}


def test_the_summary_has_the_derived_numbers(config):
  policy = models.abstract(startup.decoder_config(config))
  with build.components(config) as components:
    lines = lambda step: startup.run_summary(config, components, TrainState(step, policy, None))
    first = lines(0)
    assert f'{sum(leaf.size for leaf in jax.tree.leaves(policy)):,} parameters' in first[0]
    assert '4 held-out rows' in first[0] and 'isolation level' in first[1]
    assert first[2:] == [
      'stage 0 (sft): steps 1..3, 8 rows a step, 2.0 epochs of 12 rows',
      'stage 1 (grpo): steps 4..6, 8 prompts x 4 samples = 32 sequences a step, 2 update(s) of '
      'them, 2.0 epochs of 12 rows',
    ]
    assert lines(2)[-1] == 'continues from step 2'
    assert lines(6)[-1] == 'all 6 steps are done; nothing is left to train'
