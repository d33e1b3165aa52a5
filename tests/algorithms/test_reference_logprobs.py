"""The cache of reference log-probs: computed again only for another policy or other rows."""

import dataclasses

import numpy as np
from preference_examples import examples, model, plain_logprobs, score, stage_context

from rft_jax.algorithms import dpo, reference_logprobs


def test_reference_logprobs_are_computed_once_and_again_only_if_the_fingerprint_differs(tmp_path):
  temperatures = []  # of each call

  def counting_score(decoder, batch, temperature):
    temperatures.append(temperature)
    return score(decoder, batch, temperature)

  config = dpo.DpoConfig(pairs_per_step=2)
  context = stage_context(tmp_path, reference_model=model(2), score=counting_score, dpo=config)
  first = dpo.make(context).collect(None, 3).batch
  assert temperatures == [1.0, 1.0]  # train and validation; untempered, whatever the rollout's is
  second = dpo.make(context).collect(None, 3).batch
  assert len(temperatures) == 2
  assert np.array_equal(first.reference_logprobs, second.reference_logprobs)
  prompt = first.prompts[0, : first.prompt_lengths[0]].tolist()
  expected = plain_logprobs(
    model(2), prompt, first.completions[0, : first.completion_lengths[0]].tolist()
  )
  np.testing.assert_allclose(first.reference_logprobs[0, : len(expected)], expected, atol=2e-5)
  other_policy = context._replace(reference=lambda: model(1))
  dpo.make(other_policy)
  assert len(temperatures) == 4
  other_rows = other_policy._replace(examples=examples()[:-1])
  dpo.make(other_rows)
  assert len(temperatures) == 5
  path = tmp_path / reference_logprobs.FOLDER / 'from_step_000000_train.npz'
  path.write_bytes(path.read_bytes()[:100])  # damaged
  dpo.make(other_rows)
  assert len(temperatures) == 6
  uncached = dataclasses.replace(config, cache_reference=False)
  dpo.make(context._replace(workdir=tmp_path / 'uncached', groups={'dpo': uncached}))
  assert not (tmp_path / 'uncached').exists()
