"""What we export, loaded by transformers: equal logits and equal greedy continuations.

Needs torch; `make test-oracles` runs this folder.
"""

import hf_forward
import jax
import numpy as np
import pytest
import tokenizers

from rft_jax import hf, models

torch = pytest.importorskip('torch', reason='torch is not installed (the oracles extra)')
transformers = pytest.importorskip('transformers')
record_oracles = hf_forward.record_oracles()


@pytest.fixture(scope='module', params=sorted(record_oracles.FAMILIES))
def exported(request, tmp_path_factory):
  """Our model, the one that transformers loads from our export, and two prompts."""
  root = tmp_path_factory.mktemp(request.param)
  config_json = record_oracles.write(request.param, root / 'base')
  model, config = hf.load(root / 'base')
  # Other values than the base's, so that a copied file would show.
  model = jax.tree.map(lambda x: x * 1.1, model)
  hf.export(model, config, to=root / 'export', source=root / 'base')
  hf_model, report = transformers.AutoModelForCausalLM.from_pretrained(
    root / 'export', attn_implementation='eager', output_loading_info=True
  )
  assert not any(report.values()), report
  ids = record_oracles.prompts(config_json)
  rows = [row[:length] for row, length in zip(ids, record_oracles.LENGTHS)]
  return model, hf_model.eval(), rows


def test_transformers_takes_the_declared_dtype(exported):
  assert exported[1].dtype == torch.float32


def test_exported_logits_equal_ours(exported):
  model, hf_model, rows = exported
  for ours, ids in zip(hf_forward.logits_of(model, rows), rows):
    with torch.no_grad():
      expected = hf_model(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_exported_greedy_generate_equals_ours(exported):
  model, hf_model, rows = exported
  hf_model.generation_config.eos_token_id = None
  continuations = hf_forward.greedy(model, rows, 8)
  for ours, ids in zip(continuations, rows):
    prompt = torch.tensor(ids[None].astype(np.int64))
    out = hf_model.generate(
      prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8
    )
    np.testing.assert_array_equal(ours, out[0, len(ids) :].numpy())


SMALL = dict(
  vocab_size=80,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=16,
  mlp_dim=48,
  max_positions=64,
  eos_ids=(69, 3),
  pad_id=0,
  bos_id=1,
  valid_vocab=70,
)


@pytest.mark.parametrize(
  'structure',
  [
    dict(
      model_type='llama',
      rope_theta=100.0,
      rope_scaling=models.Llama3Rope(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32
      ),
    ),
    dict(model_type='qwen2', qkv_bias=True),
    dict(model_type='qwen3', qk_norm=True, tied_head=True),
  ],
  ids=lambda structure: structure['model_type'],
)
def test_a_model_from_scratch_is_read_by_transformers(tmp_path, structure):
  config = models.DecoderConfig(**SMALL, **structure)
  model = jax.tree.map(lambda x: 5 * x, models.make(config, seed=0))  # logits far from uniform
  words = tokenizers.models.WordLevel({f'w{i}': i for i in range(70)}, unk_token='w0')
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), pad_token='w0', eos_token='w69'
  )
  tokenizer.chat_template = '{{ messages }}'
  base = hf.save_base(model, config, tokenizer, tmp_path / 'base')
  assert hf.load(base)[1] == config
  hf_model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation='eager')
  assert hf_model.generation_config.eos_token_id == [69, 3]
  # AutoTokenizer gives a qwen2 model Qwen's own pre-tokenizer, whatever tokenizer.json says.
  reloaded = transformers.PreTrainedTokenizerFast.from_pretrained(base)
  assert (len(reloaded), reloaded.chat_template) == (70, '{{ messages }}')
  ids = record_oracles.prompts({'vocab_size': 70})[0]
  with torch.no_grad():
    expected = hf_model.eval()(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
  assert expected.std() > 0.1
  [ours] = hf_forward.logits_of(model, [ids])
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
