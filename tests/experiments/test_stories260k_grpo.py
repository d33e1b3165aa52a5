"""The grader and the openings of configs/stories260k_grpo.py; the run itself needs the model."""

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


def test_a_story_of_both_friends_scores_one(score):
  assert score(STORY) == 1.0


def test_one_friend_is_half_a_cast(score):
  assert score(STORY.replace('Pip', 'the cat')) == pytest.approx(0.5)


@pytest.mark.parametrize('stranger', ['with Tom and', 'it. Tom said'])
def test_a_stretch_with_a_stranger_does_not_count(score, stranger):
  assert score(STORY.replace('with Pip. They', f'{stranger} Pip. They', 1)) <= 0.5


def test_mother_is_no_stranger(score):
  assert score(STORY.replace('him some', 'him and Mom some')) == 1.0


def test_stopping_early_and_repeating_do_not_pay(score):
  assert score('') == score('Mia and Pip slept. The end.') == 0.0
  assert score('Mia and Pip went home. ' * 8) < 0.2
  assert score('Mia Pip ' * 20) < 0.1


def test_a_longer_story_does_not_score_higher(score):
  other = (
    'Pip found a green ball and threw it to Mia. She put it in a box near the door. Mia '
    'and the cow sang a song. At night a star fell down so Pip made a wish for us. '
  )
  assert score(STORY + other) == score(STORY) == 1.0


def test_no_word_list_of_the_held_out_openings_is_trained_on(file):
  of = lambda words: {name for names in words.values() for name in names}
  assert not of(file.TRAIN) & of(file.HELD_OUT)


def test_openings_are_different_and_name_their_cast(file):
  rows = file.openings(file.HELD_OUT, 64, seed=2)
  texts = [row['messages'][0]['content'] for row in rows]
  assert len(set(texts)) == 64 and rows == file.openings(file.HELD_OUT, 64, seed=2)
  assert all(name in text for row, text in zip(rows, texts) for name in row['cast'])


def test_an_absent_checkpoint_is_refused_with_the_way_to_get_it(file, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for source in ('', 'nowhere'):
    [problem] = file.get_config(source).problems()
    assert problem.startswith(f'model.source={source!r}') and 'karpathy/tinyllamas' in problem
