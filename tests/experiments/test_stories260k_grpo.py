"""Grader and openings of configs/stories260k_grpo.py; a run needs the pretrained model."""

import config_files
import pytest

from rft_jax import graders

CAST = {'cast': ['Mia', 'Pip']}
STORY = (
  'Mia saw a big tree at the lake and wanted to climb it with Pip. They were happy and ate '
  'a red cake. Then the rain came. Pip ran home very fast and hid in the bed. Mia laughed '
  'and gave him some warm milk. '
)


@pytest.fixture(scope='module')
def file():
  return config_files.load('stories260k_grpo')


@pytest.fixture(scope='module')
def score(file):
  grader = graders.make(file.GRADER)
  yield lambda text: graders.grade(grader, item=CAST, sample={'output_text': text}).reward
  grader.close()


def test_a_story_with_both_characters_scores_one(score):
  assert score(STORY) == 1.0


def test_one_character_scores_half(score):
  assert score(STORY.replace('Pip', 'the cat')) == pytest.approx(0.5)


@pytest.mark.parametrize('stranger', ['with Tom and', 'it. Tom said'])
def test_a_segment_with_another_character_does_not_count(score, stranger):
  assert score(STORY.replace('with Pip. They', f'{stranger} Pip. They', 1)) <= 0.5


def test_mother_is_not_another_character(score):
  assert score(STORY.replace('him some', 'him and Mom some')) == 1.0


def test_early_stopping_and_repetition_score_low(score):
  assert score('') == score('Mia and Pip slept. The end.') == 0.0
  assert score('Mia and Pip went home. ' * 8) < 0.2
  assert score('Mia Pip ' * 20) < 0.1


def test_a_longer_story_does_not_score_higher(score):
  other = (
    'Pip found a green ball and threw it to Mia. She put it in a box near the door. Mia '
    'and the cow sang a song. At night a star fell down so Pip made a wish for us. '
  )
  assert score(STORY + other) == score(STORY) == 1.0


def test_train_and_held_out_openings_have_no_word_in_common(file):
  names = lambda words: {name for group in words.values() for name in group}
  assert not names(file.TRAIN) & names(file.HELD_OUT)


def test_openings_are_different_and_contain_their_cast(file):
  rows = file.openings(file.HELD_OUT, 64, seed=2)
  texts = [row['messages'][0]['content'] for row in rows]
  assert len(set(texts)) == 64 and rows == file.openings(file.HELD_OUT, 64, seed=2)
  assert all(name in text for row, text in zip(rows, texts) for name in row['cast'])


def test_a_missing_checkpoint_is_an_error_that_says_how_to_get_it(file, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for source in ('', 'nowhere'):
    [problem] = file.get_config(source).problems()
    assert problem.startswith(f'model.source={source!r}') and 'karpathy/tinyllamas' in problem
