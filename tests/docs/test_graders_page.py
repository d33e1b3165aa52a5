"""The JSON of docs/graders.md and docs/credit.md is accepted as it stands, and grades."""

import re

import documentation
import local_server
import pytest

from rft_jax import graders

PAGE = 'docs/graders.md'
JUDGED = {'judge': '{"steps": [], "result": 4}', 'tone': '{"steps": [], "result": "kind"}'}
# name -> (answer, row, reward)
CASES = {
  'exact': ('7', {'answer': '7'}, 1.0),
  'near': ('a b c', {'answer': 'a b c'}, 1.0),
  'starts': ('7 apples', {'answer': '7'}, 1.0),
  'judge': ('anything', {}, 4.0),
  'tone': ('anything', {}, 1.0),
  'both': ('{"genes": ["GLA", "FBN1"]}', {'gene': 'FBN1'}, 0.8 * 0.5 + 0.2),
  'remote': ('anything', {'answer': '7'}, 0.7),
  'math': (r'so \boxed{1/2}', {'answer': '0.5'}, 1.0),
  'runs': (
    'so\n```python\ndef f(x):\n  return x + 1\n```\n',
    {'tests': ['assert f(1) == 2', 'assert f(1) == 3']},
    0.5,
  ),
  'gene': ('{"genes": ["GLA", "FBN1"]}', {'gene': 'FBN1'}, 0.5),
  'short': ('one ' * 100, {}, 0.5),
  'fresh': ('a b c d e', {}, 1.0),
  'preference': ('yes', {'messages': [{'role': 'user', 'content': 'x'}]}, 3.0),
}


class FakeJudge:
  """A judge that answers as the request's model says, without any model."""

  nondeterministic = False

  def __init__(self, text):
    self.text = text

  def problems(self, model, part_types):
    return []

  def identity(self, model):
    return {}

  def complete(self, requests):
    for index, _ in enumerate(requests):
      yield index, graders.judges.protocol.JudgeCompletion(self.text, {}, {})

  def close(self):
    pass


def grade(grader, answer, row):
  judges = graders.Judges(graders.JudgeConfig(), FakeJudge(JUDGED.get(grader['name'])))
  score = lambda conversations: [len(answer) for _, answer in conversations]
  return graders.grade(
    grader,
    item=row,
    sample={'output_text': answer},
    judges=judges,
    reward_models={'runs/reward/export': score},
  )


def test_every_grader_of_the_page_grades(monkeypatch):
  monkeypatch.setenv('MY_KEY', 'secret')
  values = documentation.graders(PAGE)
  assert {value['name'] for value in values} == set(CASES)
  reply = lambda request, _: local_server.Reply({'score': 0.7})
  with local_server.serving(reply) as server:
    for value in values:
      if value['type'] == 'endpoint':
        graders.make(value).close()  # accepted with the address of the page
        value = {**value, 'url': server.url}
      answer, row, reward = CASES[value['name']]
      result = grade(value, answer, row)
      assert not result.errors and result.reward == pytest.approx(reward), value['name']
  (request,) = server.requests
  assert set(request['body']) == {'sample', 'item', 'trace_id'}
  assert request['headers']['Authorization'] == 'Bearer secret'


def test_the_table_and_the_examples_have_every_type():
  text = documentation.read(PAGE)
  table = [
    name
    for row in re.findall(r'^\| (`.+?) \|', text, re.MULTILINE)
    for name in re.findall('`([a-z_]+)`', row)
  ]
  assert sorted(table) == sorted(graders.GRADERS)
  examples = set(re.findall(r'"type": "([a-z_]+)"', text))
  assert set(graders.GRADERS) <= examples


def test_the_step_grader_of_the_credit_page_grades_steps():
  (source,) = documentation.fenced('docs/credit.md', 'python')
  grader = graders.make({'type': 'python', 'name': 'steps', 'source': source})
  try:
    rewards = [
      graders.grade(
        grader,
        item={'reasoning_step': {'text': text, 'before': '1 + 1 = 2\n', 'index': 1}},
        sample={'output_text': text},
      ).reward
      for text in ('2 + 1 = 3', '1 + 1 = 2', 'so')
    ]
  finally:
    grader.close()
  assert rewards == [1.0, 0.0, 0.0]
