"""Reasoning and answer: where a completion is split."""

import pytest
import tiny_tokenizers

THINK = ('<think>', '</think>')
OPENING = tiny_tokenizers.CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")


@pytest.mark.parametrize('special', [(), THINK])  # the marker as many tokens, and as one
def test_the_answer_follows_the_end_marker(make_chat, special):
  chat = make_chat(special=('<|im_start|>', '<|im_end|>', *special), reasoning=THINK)
  text = '<think> 6 x 7 </think>\n\n42 \n'
  ids = chat.encode([text + '<|im_end|>'])[0]
  reasoning = chat.encode(['<think> 6 x 7 </think>'])[0]
  assert chat.parse_completion(chat.decode(ids), ids) == ('6 x 7', '42 \n', len(reasoning))


def test_reasoning_opened_by_the_prompt_needs_no_start_marker(make_chat):
  chat = make_chat(template=OPENING, reasoning=THINK)
  ids = chat.encode(['hm</think>42'])[0]
  assert chat.parse_completion('hm</think>42', ids)[:2] == ('hm', '42')


def test_without_end_marker_there_is_no_answer(make_chat):
  chat = make_chat(reasoning=THINK)
  ids = chat.encode(['<think>still <|im_end|>'])[0]
  assert chat.parse_completion(chat.decode(ids), ids) == ('still', None, len(ids) - 1)


def test_without_markers_the_whole_text_is_the_answer(make_chat):
  assert make_chat().parse_completion(' 42\n', [1, 2]) == (None, ' 42\n', 0)


def test_markers_and_a_template_that_does_not_think_contradict_each_other(make_chat):
  closed = OPENING.replace('<think>\\n', '<think>\\n\\n</think>\\n\\n')
  with pytest.raises(ValueError, match='closes the reasoning'):
    make_chat(template=closed, reasoning=THINK)
