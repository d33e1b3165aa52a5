"""Pairs and labelled answers for a tiny model, and log-probs computed plainly, for DPO and KTO."""

import functools

import jax
import numpy as np
import optax
import tiny

from rft_jax import models, sharding
from rft_jax.algorithms.base import StageContext
from rft_jax.config import Stage
from rft_jax.training import scoring
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Example, Item, TrainState


@functools.cache
def model(seed=1):
  config = models.DecoderConfig(
    vocab_size=48,
    dim=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    tied_head=False,
    valid_vocab=44,
  )
  return jax.tree.map(lambda x: 3.0 * x, models.make(config, seed=seed))


@functools.cache
def examples(count=7, seed=0):
  """Returns pairs of very unequal lengths; target_ids also have a label."""
  rng = np.random.default_rng(seed)
  random_ids = lambda most: rng.integers(0, 44, rng.integers(1, most + 1)).tolist()
  return [
    Example(
      Item({}, f'x:{n}'),
      random_ids(6),
      random_ids(20),
      rejected_ids=random_ids(60 if n % 3 else 9),
      desirable=n % 3 != 0,
    )
    for n in range(count)
  ]


@functools.cache
def one_device_mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


def score(model, batch, temperature=0.5, **settings):
  return scoring.score_batch(
    model, batch, UpdateConfig(**settings), temperature=temperature, mesh=one_device_mesh()
  )


def stage_context(workdir=None, *, reference_model=None, score=score, **groups):
  return StageContext(
    groups=groups,
    seed=3,
    first_step=0,
    examples=examples(),
    validation=examples(5, seed=9),
    reference=lambda state=None: reference_model,
    rollout=None,
    score=score,
    values=None,
    greedy=None,
    record=None,
    workdir=workdir,
  )


@jax.jit
def _logits(decoder, ids, length):
  return decoder(ids, lengths=length)[0, :, :44]


def plain_logprobs(decoder, prompt, answer):
  """Returns float64 log-probs of an answer, from the logits of its one row."""
  ids = np.zeros((1, 72), np.int32)
  ids[0, : len(prompt) + len(answer)] = [*prompt, *answer]
  logits = np.asarray(_logits(decoder, ids, np.array([len(prompt) + len(answer)])), np.float64)
  table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.array([table[len(prompt) + t - 1, token] for t, token in enumerate(answer)])


def sgd_update(loss, batch, **settings):
  """Returns (minus the change of the weights of model() at learning rate 1, metrics)."""
  tx = optax.sgd(1.0)
  update = updates.make_update(
    loss, {'policy': tx}, config=UpdateConfig(**settings), temperature=1.0, mesh=one_device_mesh()
  )
  start = jax.tree.map(lambda x: x + 0, model())
  state, metrics = update(TrainState(0, start, {'policy': tx.init(start)}), batch)
  return jax.tree.map(
    lambda old, new: np.asarray(old, np.float64) - np.asarray(new), model(), state.policy
  ), metrics


def norm(tree):
  """Returns the Euclidean norm of all leaves together."""
  return (
    sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(tree)) ** 0.5
  )


# --- rows of whole runs -----------------------------------------------------------------------


def pair_rows(first, count):
  return [
    {
      'messages': [{'role': 'user', 'content': f'{n % 7} + {n % 5}, case {n}'}],
      'chosen': str(n % 7 + n % 5),
      'rejected': f'{n % 7 + n % 5 + 1} or so',
    }
    for n in range(first, first + count)
  ]


def run_config(directory, algorithm):
  """Writes pairs; returns the Config of an SFT step and four steps of the algorithm, ungraded."""
  config = tiny.config(
    directory,
    grader='',
    stages=(
      Stage(algorithm='sft', steps=1, optim=OptimConfig(learning_rate=1e-2)),
      Stage(algorithm=algorithm, steps=4, optim=OptimConfig(learning_rate=1e-2)),
    ),
  )
  config.sft.target = ''  # the chosen answers
  config.dpo.pairs_per_step, config.kto.rows_per_step = 8, 8
  tiny.write_rows(directory / 'train.jsonl', pair_rows(0, 20))
  tiny.write_rows(directory / 'validation.jsonl', pair_rows(100, 12))
  return config
