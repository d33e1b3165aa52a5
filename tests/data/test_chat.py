"""Messages to ids and back. The ids in brackets name the trap that a test closes."""

import pytest
import tiny_tokenizers
from paths import SHARED

from rft_jax.data import chat, templates

SHARED = SHARED / 'data'
THINK = ('<think>', '</think>')
USER = {'role': 'user', 'content': 'What is 6 x 7?'}
# As Qwen3 does: an answer's reasoning is cut out of the transcript.
STRIPPING = tiny_tokenizers.CHATML.replace('m.content', "m.content.split('</think>')[-1]")
OPENING = tiny_tokenizers.CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")


@pytest.fixture
def build(tmp_path):
  """Returns a Chat of a tokenizer made on the spot."""

  def build(*, reasoning=None, template_kwargs=None, choice='', date='2025-01-01', **tokenizer):
    tiny_tokenizers.save(tmp_path, **tokenizer)
    return chat.make(
      tmp_path,
      chat.ChatConfig(
        reasoning=reasoning, template=choice, date=date, template_kwargs=template_kwargs or {}
      ),
    )

  return build


def shared(*parts):
  path = SHARED.joinpath(*parts)
  if not path.exists():
    pytest.skip(f'needs {"/".join(parts)} of the shared data, which is not here')
  return path


# --- prompts ---------------------------------------------------------------------------------


def test_a_prompt_ends_with_the_generation_prompt(build):
  made = build()
  assert made.tokenizer.decode(made.prompt_ids([USER])) == (
    '<|im_start|>user\nWhat is 6 x 7?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_bos_is_never_doubled(build):  # T3
  template = '{{ bos_token }}' + tiny_tokenizers.CHATML
  made = build(template=template, bos='<bos>', adds_bos=True)
  bos = made.tokenizer.bos_token_id
  assert made.tokenizer.encode('x')[0] == bos  # the tokenizer would add its own
  assert made.prompt_ids([USER]).count(bos) == 1


def test_the_plain_default_puts_bos_first_and_eos_last(build):
  made = build(template=None, special=(), bos='<bos>', adds_bos=True)
  prompt, completion = made.supervised_ids(
    [{'role': 'developer', 'content': 'Be brief.'}, USER], None, '42'
  )
  assert made.template == templates.PLAIN_TEMPLATE
  assert made.tokenizer.decode(prompt) == '<bos>Be brief.\nWhat is 6 x 7?\n'
  assert made.tokenizer.decode(completion) == '42<eos>'


def test_a_tokenizer_with_the_chatml_tokens_defaults_to_chatml(build):
  made = build(template=None)
  text = made.prompt_text([{'role': 'developer', 'content': 'Be brief.'}, USER])
  assert text == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 x 7?'
    '<|im_end|>\n<|im_start|>assistant\n'
  )


def test_the_template_can_be_replaced_by_a_file_or_by_the_default(build, tmp_path):
  path = tmp_path / 'own.jinja'
  path.write_text('{% for m in messages %}[{{ m.content }}]{% endfor %}')
  assert build(choice=str(path)).prompt_text([USER]) == '[What is 6 x 7?]'
  assert build(template='unused', choice='default').template == templates.CHATML_TEMPLATE


def test_text_parts_are_joined(build):
  parts = [{'type': 'text', 'text': 'What is '}, {'type': 'text', 'text': '6 x 7?'}]
  made = build()
  assert made.prompt_ids([{'role': 'user', 'content': parts}]) == made.prompt_ids([USER])


def test_a_template_that_knows_developer_gets_developer(build):
  template = (
    "{% for m in messages %}{% if m.role in ('developer', 'user') %}"
    "{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
  )
  made = build(template=template)
  for role in ('developer', 'system'):  # one role here
    assert made.prompt_text([{'role': role, 'content': 'Be brief.'}, USER]).startswith(
      'developer: Be brief.'
    )


def test_a_template_that_drops_developer_gets_system(build):
  template = (
    "{% for m in messages %}{% if m.role in ('system', 'user') %}"
    "{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
  )
  text = build(template=template).prompt_text([{'role': 'developer', 'content': 'Brief.'}, USER])
  assert text.startswith('system: Brief.')


def test_a_message_that_the_template_drops_is_an_error(build, tmp_path):
  made = build(template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
  with pytest.raises(chat.RenderError) as error:
    made.prompt_ids([{'role': 'developer', 'content': 'Be brief.'}, USER])
  for part in ('messages[0]', 'Be brief.', f'the chat template of {tmp_path.name}'):
    assert part in str(error.value)


def test_a_template_that_refuses_a_row_is_quoted(build):
  made = build(
    template="{% if messages|length > 2 %}{{ raise_exception('at most two') }}"
    '{% endif %}' + tiny_tokenizers.CHATML
  )
  with pytest.raises(chat.RenderError, match='at most two'):
    made.prompt_ids([USER, {'role': 'assistant', 'content': 'x'}, USER])


def test_tools_that_the_template_drops_are_an_error(build):
  tool = {'type': 'function', 'function': {'name': 'look_up', 'parameters': {'type': 'object'}}}
  made = build()
  with pytest.raises(chat.RenderError, match='look_up'):
    made.prompt_ids([USER], [tool])
  assert made.prompt_ids([USER], []) == made.prompt_ids([USER])  # T5: none and no list are one


def test_arguments_of_tool_calls_are_written_as_an_object(build):
  template = (
    '{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}'
    '{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}'
  )
  call = {'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x": 1}'}}
  text = build(template=template).prompt_text(
    [USER, {'role': 'assistant', 'content': None, 'tool_calls': [call]}]
  )
  assert text.endswith('f{"x": 1}')


def test_a_template_is_told_the_same_day_every_day(build):
  made = build(
    template='{{ strftime_now("%d %B %Y") }} {{ messages[0].content }}', date='2024-02-29'
  )
  assert made.prompt_text([USER]).startswith('29 February 2024 ')


def test_template_kwargs_reach_the_template(build):
  made = build(template='{{ mood }}' + tiny_tokenizers.CHATML, template_kwargs={'mood': 'calm'})
  assert made.prompt_text([USER]).startswith('calm<|im_start|>')


# --- answers to learn ------------------------------------------------------------------------


@pytest.mark.parametrize('as_turn', [True, False])
def test_a_completion_ends_with_the_end_of_turn_and_nothing_after_it(build, as_turn):  # M4, T4
  made = build()
  messages = [USER] + [{'role': 'assistant', 'content': '42'}] * as_turn
  prompt, completion = made.supervised_ids(messages, None, None if as_turn else '42')
  assert prompt == made.prompt_ids([USER])
  assert made.tokenizer.decode(completion) == '42<|im_end|>'
  assert completion[-1] in made.stop_ids


def test_a_template_without_end_of_turn_gets_eos(build):
  made = build(template='{% for m in messages %}{{ m.content }}\n\n{% endfor %}', special=())
  assert made.tokenizer.decode(made.supervised_ids([USER], None, '42')[1]) == '42<eos>'


def test_a_prompt_that_is_no_literal_prefix_is_an_error(build):
  made = build(template=OPENING, reasoning=THINK)
  with pytest.raises(chat.RenderError) as error:
    made.supervised_ids([USER], None, '6 x 7 is 42.</think>42')
  for part in ('literal prefix', 'the chat template of', "begin the answer with '<think>'"):
    assert part in str(error.value)
  prompt, completion = made.supervised_ids([USER], None, '<think>\n6 x 7 is 42.</think>42')
  assert made.decode(prompt + completion).endswith('assistant\n<think>\n6 x 7 is 42.</think>42')


def test_a_template_that_strips_the_reasoning_is_an_error(build):
  made = build(template=STRIPPING, reasoning=THINK)
  with pytest.raises(chat.RenderError, match='leaves out.*because'):
    made.supervised_ids([USER], None, '<think>because</think>42')


def test_an_answer_that_holds_a_stop_token_is_an_error(build):
  with pytest.raises(chat.RenderError, match='im_end'):
    build().supervised_ids([USER], None, 'four<|im_end|>two')


def test_without_an_answer_there_is_nothing_to_learn(build):
  with pytest.raises(chat.RenderError, match='no answer'):
    build().supervised_ids([USER])


# --- stop ids and vocabulary -----------------------------------------------------------------


def test_every_eos_of_every_source_stops(build, tmp_path):  # M6
  tiny_tokenizers.save(tmp_path)  # ids 256, 257: ChatML's; 258: <eos>
  (tmp_path / 'config.json').write_text('{"model_type": "llama", "eos_token_id": 9}')
  made = build(eos_ids=[3, 5])
  assert made.stop_ids == (3, 5, 9, 257, 258)
  assert made.vocabulary_size == 259


def test_no_eos_anywhere_is_an_error(build):
  with pytest.raises(ValueError, match='no end-of-sequence token'):
    build(template='{% for m in messages %}{{ m.content }}{% endfor %}', eos=None)


@pytest.mark.parametrize('make_it', [True, False])
def test_a_directory_without_tokenizer_is_an_error_that_names_it(tmp_path, make_it):
  path = tmp_path / 'model'
  if make_it:
    path.mkdir()
  with pytest.raises(ValueError, match=f'{path}.*tokenizer.json'):
    chat.make(path, chat.ChatConfig())


def test_the_fingerprint_changes_with_the_template(build):
  own, default = build(), build(choice='default')
  assert own.fingerprint() != default.fingerprint()
  assert own.fingerprint() == build().fingerprint()


# --- decoding --------------------------------------------------------------------------------


def test_decoding_drops_special_tokens_but_keeps_the_markers(build):
  made = build(special=('<|im_start|>', '<|im_end|>', *THINK), reasoning=THINK)
  ids = made.encode(['<think>hm</think>42<|im_end|>'])[0]
  assert len(ids) == 4 + 3
  assert made.decode(ids) == '<think>hm</think>42'


def test_bytes_that_are_no_text_are_replaced(build):  # T8
  made = build()
  assert made.decode(made.encode(['ä'])[0][:1]) == '\ufffd'


@pytest.mark.parametrize('special', [(), THINK])  # the marker as many tokens, and as one
def test_the_answer_follows_the_end_marker(build, special):
  made = build(special=('<|im_start|>', '<|im_end|>', *special), reasoning=THINK)
  text = '<think> 6 x 7 </think>\n\n42 \n'
  ids = made.encode([text + '<|im_end|>'])[0]
  reasoning = made.encode(['<think> 6 x 7 </think>'])[0]
  assert made.answer(made.decode(ids), ids) == ('6 x 7', '42 \n', len(reasoning))


def test_reasoning_opened_by_the_prompt_needs_no_start_marker(build):
  made = build(template=OPENING, reasoning=THINK)
  ids = made.encode(['hm</think>42'])[0]
  assert made.answer('hm</think>42', ids)[:2] == ('hm', '42')


def test_without_end_marker_there_is_no_answer(build):
  made = build(reasoning=THINK)
  ids = made.encode(['<think>still <|im_end|>'])[0]
  assert made.answer(made.decode(ids), ids) == ('still', None, len(ids) - 1)


def test_without_markers_the_whole_text_is_the_answer(build):
  assert build().answer(' 42\n', [1, 2]) == (None, ' 42\n', 0)


def test_markers_and_a_template_that_does_not_think_contradict_each_other(build):
  closed = OPENING.replace('<think>\\n', '<think>\\n\\n</think>\\n\\n')
  with pytest.raises(ValueError, match='closes the reasoning'):
    build(template=closed, reasoning=THINK)


def test_a_config_lists_all_its_problems():
  config = chat.ChatConfig(reasoning=('a', 'a'), template='no such file', date='today')
  fields = [problem.split('=')[0] for problem in config.validate()]
  assert fields == ['reasoning', 'template', 'date']
  assert chat.ChatConfig(reasoning=THINK).validate() == []


# --- real tokenizers -------------------------------------------------------------------------


def test_qwen_gets_developer_as_system():
  made = chat.make(shared('tokenizers', 'qwen2.5'), chat.ChatConfig())
  text = made.prompt_text([{'role': 'developer', 'content': 'Be brief.'}, USER])
  assert text == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 x 7?'
    '<|im_end|>\n<|im_start|>assistant\n'
  )
  assert made.vocabulary_size == 151665  # the model's tables have 151,936 rows (T7)
  _, completion = made.supervised_ids([USER], None, '42')
  assert made.tokenizer.convert_ids_to_tokens(completion) == ['4', '2', '<|im_end|>']


def test_a_sentencepiece_completion_gets_no_space_of_its_own():
  made = chat.make(shared('models', 'stories260K'), chat.ChatConfig())
  prompt, completion = made.supervised_ids([USER], None, 'once upon')
  joint = made.tokenizer.encode('<s>What is 6 x 7?\nonce upon</s>', add_special_tokens=False)
  assert prompt + completion == joint
  assert prompt[0] == 1 and prompt.count(1) == 1
  assert made.stop_ids == (1, 2)  # its stories end with 1
