"""episodes/: graded samples are read back as they were written."""

import numpy as np
import pytest

from rft_jax.records import episodes as episode_files
from rft_jax.types import Episode, Grade, Item, Sample


def episode(reward, number, filtered=None):
  row = {'messages': [{'role': 'user', 'content': 'Größe?'}], 'answer': {'n': [1, 2]}}
  sample = Sample([5, 6, 2], [-0.1, -2.5, np.float32(-1e-8).item()], filtered, 'stop')
  grade = Grade(reward, {'exact': reward}, {} if reward is not None else {'other_error': 'down'})
  return Episode(
    Item(row, 'cases.jsonl:12'), 41, number, [9, 8], sample, '<think>a</think>b', 'b', 4, grade, 12
  )


def test_every_sample_is_read_back_as_it_was_written(tmp_path):
  episodes = [episode(0.5, 0), episode(None, 1, filtered=[-0.25, -0.5, 0.0])]
  path = episode_files.write(tmp_path, 12, episodes)
  assert path.name == 'step_000012.parquet' and episode_files.steps(tmp_path) == [12]
  for record, written in zip(episode_files.read(tmp_path, 12), episodes):
    assert record == {
      'occurrence': 41,
      'index': written.index,
      'source': 'cases.jsonl:12',
      'row': written.item.row,
      'prompt_ids': [9, 8],
      'tokens': [5, 6, 2],
      'logprobs': np.float32(written.sample.logprobs).tolist(),
      'filtered_logprobs': written.sample.filtered_logprobs,
      'text': written.text,
      'output_text': 'b',
      'reward': written.grade.reward,
      'components': written.grade.components,
      'errors': written.grade.errors,
      'stop_reason': 'stop',
      'reasoning_tokens': 4,
      'policy_step': 12,
    }


def test_columns_can_be_chosen_and_a_missing_step_names_those_that_exist(tmp_path):
  episode_files.write(tmp_path, 3, [episode(1.0, 0)])
  episode_files.write(tmp_path, 4, [episode(1.0, 0)])
  assert episode_files.read(tmp_path, 3, columns=['reward']) == [{'reward': 1.0}]
  with pytest.raises(FileNotFoundError, match='there are steps 3, 4'):
    episode_files.read(tmp_path, 5)
  episode_files.truncate(tmp_path, 4)
  assert episode_files.steps(tmp_path) == [3]


def test_the_same_samples_give_the_same_bytes(tmp_path):
  first, second = (episode_files.write(tmp_path / name, 1, [episode(1.0, 0)]) for name in 'ab')
  assert first.read_bytes() == second.read_bytes()
