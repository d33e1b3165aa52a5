"""Chat: messages to ids and back. The ids in brackets name the trap that a test closes."""

import pytest
import tiny_tokenizers
from paths import SHARED

from rft_jax.data import chat as chats
from rft_jax.data.chat_templates import RenderError

THINK = ('<think>', '</think>')
USER = {'role': 'user', 'content': 'What is 6 x 7?'}
# As Qwen3 does: the reasoning of an answer is removed from the transcript.
STRIPPING = tiny_tokenizers.CHATML.replace('m.content', "m.content.split('</think>')[-1]")
OPENING = tiny_tokenizers.CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")


def shared(*parts):
  path = SHARED.joinpath('data', *parts)
  if not path.exists():
    pytest.skip(f'needs {"/".join(parts)} of the shared data, which is not here')
  return path


def test_a_config_lists_all_its_problems():
  config = chats.ChatConfig(reasoning=('a', 'a'), template='no such file', date='today')
  fields = [problem.split('=')[0] for problem in config.validate()]
  assert fields == ['reasoning', 'template', 'date']
  assert chats.ChatConfig(reasoning=THINK).validate() == []


# --- prompts ---------------------------------------------------------------------------------


def test_bos_is_never_doubled(make_chat):  # T3
  template = '{{ bos_token }}' + tiny_tokenizers.CHATML
  chat = make_chat(template=template, bos='<bos>', adds_bos=True)
  bos = chat.tokenizer.bos_token_id
  assert chat.tokenizer.encode('x')[0] == bos  # the tokenizer would add its own
  assert chat.prompt_ids([USER]).count(bos) == 1


# --- supervised targets ----------------------------------------------------------------------


@pytest.mark.parametrize('as_turn', [True, False])
def test_a_completion_ends_with_the_end_of_turn_and_nothing_after_it(make_chat, as_turn):  # M4, T4
  chat = make_chat()
  messages = [USER] + [{'role': 'assistant', 'content': '42'}] * as_turn
  prompt, completion = chat.supervised_ids(messages, None, None if as_turn else '42')
  assert prompt == chat.prompt_ids([USER])
  assert chat.tokenizer.decode(completion) == '42<|im_end|>'
  assert completion[-1] in chat.stop_ids


def test_a_template_without_end_of_turn_gets_eos(make_chat):
  chat = make_chat(template='{% for m in messages %}{{ m.content }}\n\n{% endfor %}', special=())
  assert chat.tokenizer.decode(chat.supervised_ids([USER], None, '42')[1]) == '42<eos>'


def test_a_prompt_that_is_not_a_literal_prefix_is_an_error(make_chat):
  chat = make_chat(template=OPENING, reasoning=THINK)
  with pytest.raises(RenderError) as error:
    chat.supervised_ids([USER], None, '6 x 7 is 42.</think>42')
  for part in ('literal prefix', 'the chat template of', "begin the answer with '<think>'"):
    assert part in str(error.value)
  prompt, completion = chat.supervised_ids([USER], None, '<think>\n6 x 7 is 42.</think>42')
  assert chat.decode(prompt + completion).endswith('assistant\n<think>\n6 x 7 is 42.</think>42')


def test_a_template_that_strips_the_reasoning_is_an_error(make_chat):
  chat = make_chat(template=STRIPPING, reasoning=THINK)
  with pytest.raises(RenderError, match='leaves out.*because'):
    chat.supervised_ids([USER], None, '<think>because</think>42')


def test_a_target_that_contains_a_stop_token_is_an_error(make_chat):
  with pytest.raises(RenderError, match='im_end'):
    make_chat().supervised_ids([USER], None, 'four<|im_end|>two')


def test_a_row_without_a_target_is_an_error(make_chat):
  with pytest.raises(RenderError, match='no target'):
    make_chat().supervised_ids([USER])


# --- decoding and identity -------------------------------------------------------------------


def test_decoding_drops_special_tokens_but_keeps_the_markers(make_chat):
  chat = make_chat(special=('<|im_start|>', '<|im_end|>', *THINK), reasoning=THINK)
  ids = chat.encode(['<think>hm</think>42<|im_end|>'])[0]
  assert len(ids) == 4 + 3
  assert chat.decode(ids) == '<think>hm</think>42'


def test_bytes_that_are_not_utf8_are_replaced(make_chat):  # T8
  chat = make_chat()
  assert chat.decode(chat.encode(['ä'])[0][:1]) == '\ufffd'


@pytest.mark.parametrize('make_it', [True, False])
def test_a_directory_without_tokenizer_is_an_error_that_names_it(tmp_path, make_it):
  path = tmp_path / 'model'
  if make_it:
    path.mkdir()
  with pytest.raises(ValueError, match=f'{path}.*tokenizer.json'):
    chats.make(path, chats.ChatConfig())


def test_the_fingerprint_changes_with_the_template(make_chat):
  own, default = make_chat(), make_chat(choice='default')
  assert own.fingerprint() != default.fingerprint()
  assert own.fingerprint() == make_chat().fingerprint()


# --- real tokenizers -------------------------------------------------------------------------


def test_qwen_gets_developer_as_system():
  chat = chats.make(shared('tokenizers', 'qwen2.5'), chats.ChatConfig())
  text = chat.prompt_text([{'role': 'developer', 'content': 'Be brief.'}, USER])
  assert text == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 x 7?'
    '<|im_end|>\n<|im_start|>assistant\n'
  )
  assert chat.vocabulary_size == 151665  # the model's tables have 151,936 rows (T7)
  _, completion = chat.supervised_ids([USER], None, '42')
  assert chat.tokenizer.convert_ids_to_tokens(completion) == ['4', '2', '<|im_end|>']


def test_a_sentencepiece_completion_gets_no_space_of_its_own():
  chat = chats.make(shared('models', 'stories260K'), chats.ChatConfig())
  prompt, completion = chat.supervised_ids([USER], None, 'once upon')
  joint = chat.tokenizer.encode('<s>What is 6 x 7?\nonce upon</s>', add_special_tokens=False)
  assert prompt + completion == joint
  assert prompt[0] == 1 and prompt.count(1) == 1
  assert chat.stop_ids == (1, 2)  # its stories end with 1
