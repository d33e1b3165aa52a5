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
def both(request, tmp_path_factory):
  """Our model, theirs of our export, and two prompts."""
  root = tmp_path_factory.mktemp(request.param)
  config_json = record_oracles.write(request.param, root / 'base')
  model, config = hf.load(root / 'base')
  # Other values than the base's, so that a copied file would show.
  model = jax.tree.map(lambda x: x * 1.1, model)
  hf.export(model, config, to=root / 'export', source=root / 'base')
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    root / 'export', attn_implementation='eager', output_loading_info=True
  )
  assert not any(report.values()), report
  ids = record_oracles.prompts(config_json)
  rows = [row[:length] for row, length in zip(ids, record_oracles.LENGTHS)]
  return model, theirs.eval(), rows


def test_transformers_takes_the_declared_dtype(both):
  assert both[1].dtype == torch.float32


def test_exported_logits_equal_ours(both):
  model, theirs, rows = both
  for ours, ids in zip(hf_forward.logits_of(model, rows), rows):
    with torch.no_grad():
      wanted = theirs(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_exported_greedy_generate_equals_ours(both):
  model, theirs, rows = both
  theirs.generation_config.eos_token_id = None
  found = hf_forward.greedy(model, rows, 8)
  for ours, ids in zip(found, rows):
    prompt = torch.tensor(ids[None].astype(np.int64))
    out = theirs.generate(
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
  theirs = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation='eager')
  assert theirs.generation_config.eos_token_id == [69, 3]
  # AutoTokenizer gives a qwen2 model Qwen's own pre-tokenizer, whatever tokenizer.json says.
  read = transformers.PreTrainedTokenizerFast.from_pretrained(base)
  assert (len(read), read.chat_template) == (70, '{{ messages }}')
  ids = record_oracles.prompts({'vocab_size': 70})[0]
  with torch.no_grad():
    wanted = theirs.eval()(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
  assert wanted.std() > 0.1
  [ours] = hf_forward.logits_of(model, [ids])
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
