"""DPO and KTO through the real update, on a tiny model, against plain loops; and whole runs."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
import tiny

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import dpo, kto, reference_logprobs
from rft_jax.algorithms.base import StageContext
from rft_jax.bootstrap import intervals
from rft_jax.config import Stage
from rft_jax.data import batching, packing
from rft_jax.errors import InputError
from rft_jax.objectives.preference_objective import PreferenceConfig
from rft_jax.objectives.unpaired_losses import KtoConfig
from rft_jax.records import metrics as metrics_file
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build
from rft_jax.training import scoring
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Example, Item, TrainState

CLOCKS = ('seconds/', 'compilations')


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
  """Pairs of very unequal lengths."""
  rng = np.random.default_rng(seed)
  ids = lambda most: rng.integers(0, 44, rng.integers(1, most + 1)).tolist()
  return [
    Example(
      Item({}, f'x:{n}'),
      ids(6),
      ids(20),
      rejected_ids=ids(60 if n % 3 else 9),
      desirable=n % 3 != 0,
    )
    for n in range(count)
  ]


@functools.cache
def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


def score(model, batch, temperature=0.5, **settings):
  return scoring.score_batch(
    model, batch, UpdateConfig(**settings), temperature=temperature, mesh=mesh()
  )


def context(folder=None, *, reference_model=None, scorer=score, first_step=0, **groups):
  return StageContext(
    groups=groups,
    seed=3,
    first_step=first_step,
    examples=examples(),
    validation=examples(5, seed=9),
    reference=lambda now=None: reference_model,
    rollout=None,
    score=scorer,
    values=None,
    greedy=None,
    record=None,
    workdir=folder,
  )


@jax.jit
def logits_of(one, ids, length):
  return one(ids, lengths=length)[0, :, :44]


def plain_logprobs(one, prompt, answer):
  """Float64 log-probs of an answer, from the logits of its one row."""
  ids = np.zeros((1, 72), np.int32)
  ids[0, : len(prompt) + len(answer)] = [*prompt, *answer]
  logits = np.asarray(logits_of(one, ids, np.array([len(prompt) + len(answer)])), np.float64)
  table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.array([table[len(prompt) + t - 1, token] for t, token in enumerate(answer)])


def _update(loss, batch, **settings):
  """Returns (minus the change of the weights at learning rate 1, metrics)."""
  tx = optax.sgd(1.0)
  update = updates.make_update(
    loss, {'policy': tx}, config=UpdateConfig(**settings), temperature=1.0, mesh=mesh()
  )
  start = jax.tree.map(lambda x: x + 0, model())
  state, found = update(TrainState(0, start, {'policy': tx.init(start)}), batch)
  return jax.tree.map(
    lambda a, b: np.asarray(a, np.float64) - np.asarray(b), model(), state.policy
  ), found


def _along(tree, direction):
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(direction))
  return sum(float((np.asarray(a, np.float64) * np.asarray(b)).sum()) for a, b in pairs)


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize('tokens', [1, 60, 200, 10**6])
def test_a_pair_is_never_cut_in_two(tokens):
  batch = batching.from_pairs(examples())
  seen = []
  for piece, rows in packing.pack(batch, tokens=tokens):
    pairs = rows.reshape(-1, 2)
    assert ((pairs[:, 0] + 1 == pairs[:, 1]) & (pairs[:, 0] % 2 == 0) | (pairs == -1).all(1)).all()
    assert (piece.batch.grades.reshape(-1, 2)[pairs[:, 0] >= 0] == [1, 0]).all()
    seen += pairs[pairs[:, 0] >= 0, 0].tolist()
  assert sorted(seen) == [2 * n for n in range(7)]
  cut = packing.pack(batch._replace(grades=None), tokens=1)
  assert any(len(np.unique(rows[rows >= 0] // 2)) * 2 > (rows >= 0).sum() for _, rows in cut)


# --- the update -------------------------------------------------------------------------------

LOSSES = {
  'dpo': (
    PreferenceConfig(beta=0.3),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-0.3 * (x_w - x_l))),
  ),
  'ipo_mean': (
    PreferenceConfig(loss='ipo_mean', beta=0.3),
    lambda x_w, x_l, n_w, n_l: (x_w / n_w - x_l / n_l - 1 / 0.6) ** 2,
  ),
  'hinge': (
    PreferenceConfig(loss='hinge', beta=0.3),
    lambda x_w, x_l, n_w, n_l: max(0.0, 1 - 0.3 * (x_w - x_l)),
  ),
  'simpo': (
    PreferenceConfig(loss='simpo', beta=2.0, gamma=0.7),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-(2.0 * (x_w / n_w - x_l / n_l) - 0.7))),
  ),
  'cpo': (
    PreferenceConfig(loss='cpo', beta=0.05, nll_coef=0.5),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-0.05 * (x_w - x_l))),
  ),
}


def _plain_dpo(one, config, formula):
  """The loss of the step, and its accuracy, pair by pair."""
  losses, right, nll = [], [], []
  for example in examples():
    answers = (example.target_ids, example.rejected_ids)
    logps = [plain_logprobs(one, example.prompt_ids, answer) for answer in answers]
    sums = [one.sum() for one in logps]
    if config.loss not in ('simpo', 'cpo'):
      given = [plain_logprobs(model(2), example.prompt_ids, answer).sum() for answer in answers]
      sums = [x - y for x, y in zip(sums, given)]
    losses.append(formula(*sums, *map(len, answers)))
    by = map(len, answers) if config.loss in ('simpo', 'ipo_mean') else (1, 1)
    right.append(np.subtract(*[x / n for x, n in zip(sums, by)]) > 0)
    nll += list(-logps[0])
  return np.mean(losses) + config.nll_coef * np.mean(nll), np.mean(right)


@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradient_are_those_of_a_plain_loop_however_cut(name):
  config, formula = LOSSES[name]
  needed = dpo.REQUIREMENTS.reference({'dpo': dpo.DpoConfig(preference=config)})
  assert needed == (name not in ('simpo', 'cpo'))
  made = dpo.make(
    context(
      dpo=dpo.DpoConfig(preference=config, pairs_per_step=7),
      reference_model=model(2) if needed else None,
    )
  )
  batch = made.collect(TrainState(0, model(), None), 0).batch
  assert (batch.reference_logprobs is not None) == needed
  whole, found = _update(made.loss, batch)
  expected, accuracy = _plain_dpo(model(), config, formula)
  assert found['loss'] == pytest.approx(expected, rel=2e-5)
  assert found['rewards/accuracies'] == pytest.approx(accuracy)
  assert found['rewards/margins'] == pytest.approx(
    found['rewards/chosen'] - found['rewards/rejected'], rel=1e-4, abs=1e-5
  )
  size, step = _along(whole, whole) ** 0.5, 3e-3
  at = lambda sign: _plain_dpo(
    jax.tree.map(
      lambda w, g: w + np.float32(sign * step / size) * g.astype(np.float32), model(), whole
    ),
    config,
    formula,
  )[0]
  assert (at(1) - at(-1)) / (2 * step) == pytest.approx(size, rel=5e-3)
  cut, again = _update(made.loss, batch, microbatch_tokens=1)
  assert again['loss'] == pytest.approx(found['loss'], rel=1e-5)
  for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, atol=2e-5 * size)


def test_kto_is_that_of_a_plain_loop_with_the_reference_point_of_the_whole_step():
  config = KtoConfig(beta=0.2, desirable_weight=1.5, undesirable_weight=0.8)
  given = context(kto=kto.KtoStageConfig(preference=config, rows_per_step=7), reference_model=model(6))
  made = kto.make(given)
  collected = made.collect(TrainState(0, model(), None), 0)
  ratio = lambda prompt, answer: (
    plain_logprobs(model(), prompt, answer).sum() - plain_logprobs(model(6), prompt, answer).sum()
  )
  others = [ratio(e.prompt_ids, e.target_ids) for e in kto.mismatched(examples())]
  z = max(0.0, np.mean(others))
  assert collected.metrics['kl'] == pytest.approx(z, rel=1e-4) and z > 0.1
  losses = []
  for e in examples():
    x = ratio(e.prompt_ids, e.target_ids)
    h = 0.2 * (x - z) if e.desirable else 0.2 * (z - x)
    losses.append((1.5 if e.desirable else 0.8) * (1 - 1 / (1 + np.exp(-h))))
  whole, found = _update(made.loss, collected.batch)
  assert found['loss'] == pytest.approx(np.mean(losses), rel=2e-5)
  finely = kto.make(given._replace(score=functools.partial(score, microbatch_tokens=1)))
  again = finely.collect(TrainState(0, model(), None), 0)
  assert again.metrics['kl'] == pytest.approx(collected.metrics['kl'], rel=1e-5)
  cut, later = _update(made.loss, again.batch, microbatch_tokens=1)
  assert later['loss'] == pytest.approx(found['loss'], rel=1e-5)
  for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, atol=2e-5 * _along(whole, whole) ** 0.5)


def test_completions_are_set_behind_other_prompts_and_one_prompt_is_refused():
  pair = [
    Example(Item({}, 'x:1'), [1, 2], [3], desirable=True),
    Example(Item({}, 'x:1'), [1, 2], [4], desirable=False),
  ]
  more = [*pair, Example(Item({}, 'x:2'), [5], [6], desirable=True)]
  assert [e.target_ids for e in kto.mismatched(more)] == [[6], [6], [3]]
  assert [e.prompt_ids for e in kto.mismatched(more)] == [[1, 2], [1, 2], [5]]
  with pytest.raises(ValueError, match='1 prompts, need 2'):
    kto.mismatched(pair)
  one_sided = context(kto=kto.KtoStageConfig())._replace(examples=[more[0], more[2]])
  with pytest.raises(ValueError, match='all 2 rows have label=True'):
    kto.make(one_sided)


# --- the reference ----------------------------------------------------------------------------


def test_reference_logprobs_are_computed_once_and_again_only_if_they_do_not_fit(tmp_path):
  calls = []

  def counted(one, batch, temperature):
    calls.append(temperature)
    return score(one, batch, temperature)

  config = dpo.DpoConfig(pairs_per_step=2)
  given = context(tmp_path, reference_model=model(2), scorer=counted, dpo=config)
  first = dpo.make(given).collect(None, 3).batch
  assert calls == [1.0, 1.0]  # train and validation; untempered, whatever the sampler's is
  second = dpo.make(given).collect(None, 3).batch
  assert len(calls) == 2
  assert np.array_equal(first.reference_logprobs, second.reference_logprobs)
  expected = plain_logprobs(model(2), *_first_pair(first))
  np.testing.assert_allclose(first.reference_logprobs[0, : len(expected)], expected, atol=2e-5)
  dpo.make(given._replace(reference=lambda: model(1)))  # another policy
  assert len(calls) == 4
  dpo.make(given._replace(reference=lambda: model(1), examples=examples()[:-1]))  # other rows
  assert len(calls) == 5
  path = tmp_path / reference_logprobs.FOLDER / 'from_step_000000_train.npz'
  path.write_bytes(path.read_bytes()[:100])  # cut short
  dpo.make(given._replace(reference=lambda: model(1), examples=examples()[:-1]))
  assert len(calls) == 6
  off = dataclasses.replace(config, cache_reference=False)
  dpo.make(given._replace(workdir=tmp_path / 'off', groups={'dpo': off}))
  assert not (tmp_path / 'off').exists()


def _first_pair(batch):
  return (
    batch.prompts[0, : batch.prompt_lengths[0]].tolist(),
    batch.completions[0, : batch.completion_lengths[0]].tolist(),
  )


def test_held_out_pairs_are_undecided_at_the_reference_and_have_an_interval_after():
  made = dpo.make(context(dpo=dpo.DpoConfig(), reference_model=model(2)))
  values = made.held_out_metrics(TrainState(0, model(2), None))
  assert values['preference/accuracy'].tolist() == [0.5] * 5
  values = made.held_out_metrics(TrainState(0, model(1), None))
  margins = []
  for e in examples(5, seed=9):
    x = [
      (
        plain_logprobs(model(1), e.prompt_ids, ids) - plain_logprobs(model(2), e.prompt_ids, ids)
      ).sum()
      for ids in (e.target_ids, e.rejected_ids)
    ]
    margins.append(0.1 * (x[0] - x[1]))
  np.testing.assert_allclose(values['preference/margin'], margins, atol=1e-4)
  assert values['preference/accuracy'].tolist() == [float(margin > 0) for margin in margins]
  found = intervals(values)['preference/accuracy']
  assert found['low'] < found['mean'] == np.mean(np.array(margins) > 0) < found['high']


def test_held_out_answers_are_measured_by_the_area_under_the_curve():
  single = [e._replace(rejected_ids=None) for e in examples(5, seed=9)]
  given = context(kto=kto.KtoStageConfig(), reference_model=model(2))._replace(validation=single)
  values = kto.make(given).held_out_metrics(TrainState(0, model(1), None))['preference/accuracy']
  x = {True: [], False: []}
  for e in single:
    x[e.desirable].append(
      (
        plain_logprobs(model(1), e.prompt_ids, e.target_ids)
        - plain_logprobs(model(2), e.prompt_ids, e.target_ids)
      ).sum()
    )
  area = np.mean([good > bad for good in x[True] for bad in x[False]])
  assert np.mean(values[[e.desirable for e in single]]) == pytest.approx(area)


# --- whole runs -------------------------------------------------------------------------------


def pairs(first, count):
  return [
    {
      'messages': [{'role': 'user', 'content': f'{n % 7} + {n % 5}, case {n}'}],
      'chosen': str(n % 7 + n % 5),
      'rejected': f'{n % 7 + n % 5 + 1} or so',
    }
    for n in range(first, first + count)
  ]


def run_config(directory, algorithm, **changes):
  config = tiny.config(
    directory,
    grader='',
    stages=(
      Stage(algorithm='sft', steps=1, optim=OptimConfig(learning_rate=1e-2)),
      Stage(algorithm=algorithm, steps=4, optim=OptimConfig(learning_rate=1e-2)),
    ),
    **changes,
  )
  config.sft.target = ''  # the chosen answers
  config.dpo.pairs_per_step, config.kto.rows_per_step = 8, 8
  tiny.write_rows(directory / 'train.jsonl', pairs(0, 20))
  tiny.write_rows(directory / 'validation.jsonl', pairs(100, 12))
  return config


def arrays(workdir, step):
  import orbax.checkpoint as ocp

  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / f'step_{step:06d}'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return {
      f'{part}/{name}': np.asarray(value)
      for part in ('policy', 'optimizer')
      for name, value in checkpointer.restore(folder / part).items()
    }


@pytest.mark.parametrize('algorithm', ['dpo', 'kto'])
def test_a_run_without_a_grader_learns_is_measured_and_may_be_stopped(tmp_path, algorithm):
  config = run_config(tmp_path, algorithm)
  if algorithm == 'kto':  # the chosen of pairs for the warm-up, single answers after it
    config.stages = config.stages[1:]
  last = config.total_steps()
  final = rft_jax.train(config, tmp_path / 'whole', quiet=True)['preference/accuracy']
  assert 0.5 < final['low'] <= final['mean'] <= final['high'] <= 1
  rft_jax.train(config, tmp_path / 'stopped', stop_at_step=last - 1, quiet=True)
  kept = {
    path: path.stat().st_mtime_ns
    for path in (tmp_path / 'stopped' / reference_logprobs.FOLDER).iterdir()
  }
  rft_jax.train(config, tmp_path / 'stopped', quiet=True)
  assert kept and all(path.stat().st_mtime_ns == time for path, time in kept.items())
  ours, theirs = (arrays(tmp_path / name, last) for name in ('stopped', 'whole'))
  assert ours.keys() == theirs.keys() and len(ours) > 30
  assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
  for file in ('metrics.jsonl', 'evaluation.jsonl'):
    given = [
      [
        {k: v for k, v in row.items() if not k.startswith(CLOCKS)}
        for row in metrics_file.read(tmp_path / name / file)
      ]
      for name in ('stopped', 'whole')
    ]
    assert given[0] == given[1] and given[0], file
  held_out = metrics_file.read(tmp_path / 'whole' / 'evaluation.jsonl')
  means = {row['step']: row['preference/accuracy']['mean'] for row in held_out}
  assert Checkpoints(tmp_path / 'whole' / 'checkpoints').best() == max(
    (step for step in means if step), key=lambda step: (means[step], -step)
  )
  page = (tmp_path / 'whole' / 'report.html').read_text()
  assert 'of the held-out pairs are ranked rightly' in page and 'Pair accuracy' in page
  event = json.loads((tmp_path / 'whole' / 'events.jsonl').read_text().splitlines()[1])
  assert event['data']['train_loss'] > 0
  with pytest.raises(InputError, match='answers cannot be graded'):
    rft_jax.evaluate(config)


def test_held_out_pairs_stand_beside_grades_where_there_is_a_grader(tmp_path):
  config = run_config(tmp_path, 'dpo')
  config.stages, config.grader = config.stages[1:], tiny.GRADER
  config.stages[0].steps = 1
  tiny.write_rows(tmp_path / 'validation.jsonl', [dict(row, answer='1') for row in pairs(100, 4)])
  values = rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert {'grade', 'greedy/grade', 'preference/accuracy', 'preference/margin'} <= values.keys()


def test_graded_runs_may_hold_out_rows_without_pairs(tmp_path):
  config = run_config(tmp_path, 'dpo')
  config.grader = tiny.GRADER
  tiny.write_rows(tmp_path / 'validation.jsonl', tiny.rows(3))
  for training in (True, False):
    with build.components(config, training=training) as components:
      assert [e.rejected_ids for e in components.validation] == [None] * 3
      assert len(components.train) == 2 * training
      assert all(stage[0].rejected_ids for stage in components.train)


def test_what_cannot_be_measured_or_learnt_is_refused(tmp_path):
  config = run_config(tmp_path, 'dpo')
  tiny.write_rows(tmp_path / 'validation.jsonl', tiny.rows(3))
  with pytest.raises(InputError, match='nothing can be measured'):
    with build.components(config):
      pass
  config.stages[1].algorithm = 'grpo'
  assert any('grader is empty' in problem for problem in config.problems())
  config.dpo.preference.loss, config.dpo.pairs_per_step = 'dpop', 0
  config.kto.preference.beta, config.kto.rows_per_step = -1, 1
  told = '\n'.join(config.problems())
  for words in (
    "dpo.preference.loss='dpop'",
    'dpo.pairs_per_step=0',
    'kto.preference.beta=-1',
    'kto.rows_per_step=1',
  ):
    assert words in told
