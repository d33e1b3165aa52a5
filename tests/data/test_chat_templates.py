"""Chat templates: the one that is used, and what must be in its output.

The ids in brackets name the trap that a test closes, see correctness-traps.md.
"""

import pytest
import tiny_tokenizers

from rft_jax.data import chat_templates
from rft_jax.data.chat_templates import RenderError

USER = {'role': 'user', 'content': 'What is 6 x 7?'}


def test_a_prompt_ends_with_the_generation_prompt(make_chat):
  chat = make_chat()
  assert chat.tokenizer.decode(chat.prompt_ids([USER])) == (
    '<|im_start|>user\nWhat is 6 x 7?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_the_plain_default_puts_bos_first_and_eos_last(make_chat):
  chat = make_chat(template=None, special=(), bos='<bos>', adds_bos=True)
  prompt, completion = chat.supervised_ids(
    [{'role': 'developer', 'content': 'Be brief.'}, USER], None, '42'
  )
  assert chat.template.jinja == chat_templates.PLAIN_TEMPLATE
  assert chat.tokenizer.decode(prompt) == '<bos>Be brief.\nWhat is 6 x 7?\n'
  assert chat.tokenizer.decode(completion) == '42<eos>'


def test_a_tokenizer_with_the_chatml_tokens_defaults_to_chatml(make_chat):
  chat = make_chat(template=None)
  text = chat.prompt_text([{'role': 'developer', 'content': 'Be brief.'}, USER])
  assert text == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 x 7?'
    '<|im_end|>\n<|im_start|>assistant\n'
  )


def test_the_template_can_be_replaced_by_a_file_or_by_the_default(make_chat, tmp_path):
  path = tmp_path / 'own.jinja'
  path.write_text('{% for m in messages %}[{{ m.content }}]{% endfor %}')
  assert make_chat(choice=str(path)).prompt_text([USER]) == '[What is 6 x 7?]'
  assert (
    make_chat(template='unused', choice='default').template.jinja == chat_templates.CHATML_TEMPLATE
  )


def test_text_parts_are_joined(make_chat):
  parts = [{'type': 'text', 'text': 'What is '}, {'type': 'text', 'text': '6 x 7?'}]
  chat = make_chat()
  assert chat.prompt_ids([{'role': 'user', 'content': parts}]) == chat.prompt_ids([USER])


def test_a_template_that_knows_developer_gets_developer(make_chat):
  template = (
    "{% for m in messages %}{% if m.role in ('developer', 'user') %}"
    "{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
  )
  chat = make_chat(template=template)
  for role in ('developer', 'system'):  # one role here
    assert chat.prompt_text([{'role': role, 'content': 'Be brief.'}, USER]).startswith(
      'developer: Be brief.'
    )


def test_a_template_that_drops_developer_gets_system(make_chat):
  template = (
    "{% for m in messages %}{% if m.role in ('system', 'user') %}"
    "{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
  )
  text = make_chat(template=template).prompt_text(
    [{'role': 'developer', 'content': 'Brief.'}, USER]
  )
  assert text.startswith('system: Brief.')


def test_a_message_that_the_template_drops_is_an_error(make_chat, tmp_path):
  chat = make_chat(
    template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
  )
  with pytest.raises(RenderError) as error:
    chat.prompt_ids([{'role': 'developer', 'content': 'Be brief.'}, USER])
  for part in ('messages[0]', 'Be brief.', f'the chat template of {tmp_path.name}'):
    assert part in str(error.value)


def test_a_template_that_refuses_a_row_is_quoted(make_chat):
  chat = make_chat(
    template="{% if messages|length > 2 %}{{ raise_exception('at most two') }}"
    '{% endif %}' + tiny_tokenizers.CHATML
  )
  with pytest.raises(RenderError, match='at most two'):
    chat.prompt_ids([USER, {'role': 'assistant', 'content': 'x'}, USER])


def test_tools_that_the_template_drops_are_an_error(make_chat):
  tool = {'type': 'function', 'function': {'name': 'look_up', 'parameters': {'type': 'object'}}}
  chat = make_chat()
  with pytest.raises(RenderError, match='look_up'):
    chat.prompt_ids([USER], [tool])
  assert chat.prompt_ids([USER], []) == chat.prompt_ids([USER])  # T5: none and no list are one


def test_arguments_of_tool_calls_are_written_as_an_object(make_chat):
  template = (
    '{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}'
    '{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}'
  )
  call = {'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x": 1}'}}
  text = make_chat(template=template).prompt_text(
    [USER, {'role': 'assistant', 'content': None, 'tool_calls': [call]}]
  )
  assert text.endswith('f{"x": 1}')


def test_the_date_in_a_template_is_fixed(make_chat):
  chat = make_chat(
    template='{{ strftime_now("%d %B %Y") }} {{ messages[0].content }}', date='2024-02-29'
  )
  assert chat.prompt_text([USER]).startswith('29 February 2024 ')


def test_template_kwargs_are_passed_to_the_template(make_chat):
  chat = make_chat(template='{{ mood }}' + tiny_tokenizers.CHATML, template_kwargs={'mood': 'calm'})
  assert chat.prompt_text([USER]).startswith('calm<|im_start|>')
