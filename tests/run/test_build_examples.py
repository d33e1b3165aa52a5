"""Rows of a run: one file for supervised and reinforced stages, and lengths that do not fit."""

import pytest
import tiny

from rft_jax.errors import InputError
from rft_jax.run import build


def test_rows_that_end_in_an_assistant_turn_serve_supervised_and_reinforced_stages(tmp_path):
  config = tiny.config(tmp_path)
  config.sft.target = ''
  with_answer = [
    dict(row, messages=row['messages'] + [{'role': 'assistant', 'content': '4'}])
    for row in tiny.rows()
  ]
  tiny.write_rows(tmp_path / 'train.jsonl', with_answer)
  tiny.write_rows(tmp_path / 'validation.jsonl', with_answer[:3])
  with build.components(config) as components:
    chat, (supervised, reinforced) = components.chat, components.train
    assert supervised[0].target_ids == [*chat.encode(['4'])[0], chat.stop_ids[0]]
    assert reinforced[0].prompt_ids == chat.prompt_ids(tiny.rows()[0]['messages'])
  with build.components(config, training=False) as components:
    assert len(components.validation) == 3 and not components.train


def test_a_prompt_with_completions_beyond_the_positions_is_refused(tmp_path):
  config = tiny.config(tmp_path)
  config.rollout.max_new_tokens = 300
  with pytest.raises(InputError, match='max_new_tokens=300.*more than the 256 positions'):
    with build.components(config):
      pass
