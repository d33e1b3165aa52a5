"""Reward models that we export, scored by transformers: the same numbers on padded batches.

Needs torch; `make test-oracles` runs this folder.
"""

import hf_forward
import jax
import numpy as np
import pytest

from rft_jax import hf, models

torch = pytest.importorskip('torch', reason='torch is not installed (the oracles extra)')
transformers = pytest.importorskip('transformers')
record_oracles = hf_forward.record_oracles()


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('family', sorted(record_oracles.FAMILIES))
def test_scores_of_padded_rows_equal_ours(tmp_path, family, side):
  config_json = record_oracles.write(family, tmp_path / 'base')
  policy, config = hf.load(tmp_path / 'base')
  critic = models.make_critic(policy, 'head')
  critic.score.kernel[...] = jax.random.normal(jax.random.key(7), (config.dim, 1))
  out = hf.export_reward_model(
    critic, config, trunk=policy, to=tmp_path / 'out', source=tmp_path / 'base'
  )
  hf_model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    out, attn_implementation='eager', output_loading_info=True
  )
  assert not any(report.values()), report
  assert hf_model.config.num_labels == 1 and hf_model.score.weight.shape == (1, config.dim)
  rng, T = np.random.default_rng(0), 20
  rows = [rng.integers(3, config_json['vocab_size'], length) for length in (20, 7, 13, 1)]
  ids = np.full((len(rows), T), hf_model.config.pad_token_id)
  for row, tokens in zip(ids, rows):
    at = slice(0, len(tokens)) if side == 'right' else slice(T - len(tokens), T)
    row[at] = tokens
  mask = ids != hf_model.config.pad_token_id
  positions = np.maximum(mask.cumsum(1) - 1, 0)  # as generation counts them, for padded left sides
  with torch.no_grad():
    expected = (
      hf_model.eval()(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask).long(),
        position_ids=torch.tensor(positions),
      )
      .logits[:, 0]
      .numpy()
    )
  loaded, _ = hf.load_reward_model(out)
  tokens, lengths = hf_forward.padded(rows)
  scores = loaded(loaded.decoder.hidden(tokens, lengths=lengths))
  ours = np.asarray(scores)[np.arange(len(rows)), lengths - 1]
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))
  assert expected.std() > 0.1
