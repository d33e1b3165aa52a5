"""The tokenizer and the untrained checkpoint that are generated for a task."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from rft_jax import hf
from rft_jax.tasks import TASKS, base_checkpoint, files

SIZES = dict(seed=0, dim=32, layers=2, heads=4, kv_heads=2, mlp_dim=48, vocabulary=512)


@pytest.fixture(scope='module', params=sorted(TASKS))
def task(request):
  module = TASKS[request.param]
  return module.make(module.Config(train_rows=300, validation_rows=40))


@pytest.fixture(scope='module')
def saved(task, tmp_path_factory):
  to = tmp_path_factory.mktemp('checkpoint') / 'base'
  base_checkpoint.make(to, files.tokenizer_texts(task), **SIZES)
  return to


def render(tokenizer, row, **options):
  return tokenizer.apply_chat_template(row['messages'], tokenize=False, **options)


@pytest.mark.full
def test_prompts_and_solutions_decode_to_themselves(task, saved):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  for row in task.train[:50] + task.validation:
    for text in (render(tokenizer, row, add_generation_prompt=True), row['solution']):
      ids = tokenizer(text, add_special_tokens=False)['input_ids']
      assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == row['solution']  # <think> stays


@pytest.mark.parametrize(
  'text',
  [
    '',
    ' ',
    '  two  blanks ,  here\t\n\n',
    'Grüße ☃ 日本',
    'a<think>b',
    '{"genes": ["A"], "x": [1, 2]}',
    'UPPER lower 007',
    '\x00\x7f',
  ],
)
def test_any_text_decodes_to_itself(saved, text):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  assert tokenizer.decode(tokenizer(text, add_special_tokens=False)['input_ids']) == text


def test_sequences_are_short_and_the_vocabulary_small(task, saved):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  prompts = [
    tokenizer(render(tokenizer, row, add_generation_prompt=True))['input_ids'] for row in task.train
  ]
  solutions = [tokenizer(row['solution'])['input_ids'] for row in task.train]
  assert len(tokenizer) <= 512
  assert np.mean([len(ids) for ids in prompts]) <= 35 and max(map(len, prompts)) <= 44
  assert np.mean([len(ids) for ids in solutions]) <= 30 and max(map(len, solutions)) <= 40


def test_every_marker_is_one_token_and_end_of_turn_is_eos(saved):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  for marker in ('<think>', '</think>', '<|im_start|>', '<|im_end|>', '<|endoftext|>'):
    assert len(tokenizer(marker, add_special_tokens=False)['input_ids']) == 1
  assert tokenizer.eos_token == '<|im_end|>' and tokenizer.pad_token == '<|endoftext|>'


def test_each_digit_is_one_token(saved):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  assert [tokenizer.decode([i]) for i in tokenizer('205')['input_ids']] == ['2', '0', '5']


def test_rendered_prompt_is_a_prefix_and_developer_is_system(saved):
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  messages = [{'role': 'developer', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Which?'}]
  prompt = render(tokenizer, {'messages': messages}, add_generation_prompt=True)
  whole = render(tokenizer, {'messages': [*messages, {'role': 'assistant', 'content': 'This.'}]})
  assert prompt.startswith('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?')
  assert whole == prompt + 'This.<|im_end|>\n'


def test_checkpoint_loads_and_its_eos_is_that_of_the_tokenizer(saved):
  model, config = hf.load(saved)
  tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
  assert config.eos_ids == (tokenizer.eos_token_id,) and config.vocab_size == len(tokenizer)
  tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
  logits = model(tokens, lengths=jnp.array([6, 6]))
  assert logits.shape == (2, 6, len(tokenizer)) and bool(jnp.isfinite(logits).all())


def test_the_weights_depend_on_the_seed(saved, task, tmp_path):
  base_checkpoint.make(tmp_path / 'same', files.tokenizer_texts(task), **SIZES)
  base_checkpoint.make(tmp_path / 'other', files.tokenizer_texts(task), **(SIZES | {'seed': 1}))
  first, same, other = (
    jax.tree.leaves(hf.load(path)[0]) for path in (saved, tmp_path / 'same', tmp_path / 'other')
  )
  assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
  assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_matrices_start_at_one_over_the_root_of_dim(saved):
  model, _ = hf.load(saved)
  assert float(jnp.std(model.embed[...])) == pytest.approx(32**-0.5, rel=0.05)


def test_all_invalid_sizes_are_in_one_error(tmp_path):
  with pytest.raises(ValueError) as error:
    base_checkpoint.make(tmp_path / 'x', [], **(SIZES | {'heads': 3, 'vocabulary': 9}))
  assert all(part in str(error.value) for part in ('dim=32', 'kv_heads=2', 'vocabulary=9'))
  assert not (tmp_path / 'x').exists()


def test_config_json_has_model_type_llama(saved):
  assert json.loads((saved / 'config.json').read_text())['model_type'] == 'llama'
