"""Episodes with random prompts and completions, for tests of batches."""

import numpy as np

from rft_jax.types import Episode, Grade, Item, Sample

ITEM = Item({'messages': []}, 'cases.jsonl:1')


def make_episode(occurrence, index, prompt, tokens):
  sample = Sample(tokens, [-0.1 * (n + 1) for n in range(len(tokens))], None, 'stop')
  return Episode(ITEM, occurrence, index, prompt, sample, '', '', 0, Grade(1.0, {}, {}), 0)


def random_groups():
  """Returns 7 groups of 3 episodes."""
  rng = np.random.default_rng(0)
  groups = []
  for occurrence in range(7):
    prompt = rng.integers(3, 40, rng.integers(1, 30)).tolist()
    groups.append(
      [
        make_episode(occurrence, g, prompt, rng.integers(3, 40, rng.integers(1, 50)).tolist())
        for g in range(3)
      ]
    )
  return groups


def graded_episode(
  reward,
  *,
  text='',
  tokens=(1,),
  index=0,
  occurrence=0,
  row=None,
  source='rows.jsonl:1',
  stop_reason='stop',
  components=None,
  errors=None,
):
  """Returns an episode with a grade; text is its whole completion and its answer."""
  sample = Sample(list(tokens), [0.0] * len(tokens), None, stop_reason)
  grade = Grade(reward, components or {}, errors or {})
  item = Item(row or {}, source)
  return Episode(item, occurrence, index, [1, 2], sample, text, text, 1, grade, 0)


def graded_group(texts, rewards, **fields):
  """Returns the graded episodes of one prompt."""
  return [
    graded_episode(reward, text=text, index=index, **fields)
    for index, (text, reward) in enumerate(zip(texts, rewards))
  ]
