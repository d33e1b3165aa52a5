"""The chains task: rows and solution lines are right, and its step grader recognizes both."""

import config_files
import pytest

from rft_jax import graders
from rft_jax.tasks import __main__ as tasks
from rft_jax.tasks import chains

CONFIG = chains.Config(train_rows=150, validation_rows=50, operations=4)


@pytest.fixture(scope='module')
def task_files():
  return chains.make(CONFIG)


def test_answers_and_solution_lines_are_right(task_files):
  for row in task_files.train + task_files.validation:
    content = row['messages'][0]['content']
    lines, answer = row['solution'].removeprefix('<think>').split('</think>')
    assert str(eval(content)) == row['answer'] == answer  # Python's own arithmetic
    assert len(lines.split('\n')) == 4 and content.count('*') == 1
    for line in lines.split('\n'):
      left, result = line.split(' = ')
      assert eval(left) == int(result)
    assert lines.split('\n')[0].count('*') == 1


def test_each_problem_occurs_once_and_rows_depend_on_the_seed(task_files):
  prompts = [row['messages'][0]['content'] for row in task_files.train + task_files.validation]
  assert len(set(prompts)) == 200
  assert (
    chains.make(CONFIG)
    == task_files
    != chains.make(chains.Config(seed=1, train_rows=150, validation_rows=50, operations=4))
  )


def test_more_rows_than_half_of_the_problems_is_an_error():
  with pytest.raises(ValueError, match='half of all problems'):
    chains.make(chains.Config(operations=1, train_rows=41, validation_rows=1))


@pytest.fixture(scope='module')
def line_grader():
  grader = graders.make(chains.STEP_GRADER)
  yield (
    lambda content, before, text: (
      grader(
        {
          'messages': [{'role': 'user', 'content': content}],
          'reasoning_step': {'before': before, 'text': text, 'index': 0},
        },
        {'output_text': text},
      ).reward
    )
  )
  grader.close()


@pytest.mark.parametrize(
  'before, text, grade',
  [
    ('', '4 * 5 = 20', 1.0),
    ('', '4 * 5 = 21', 0.0),
    ('', '3 + 4 = 7', 0.0),  # true, but the product comes first
    ('4 * 5 = 20', '3 + 20 = 23', 1.0),
    ('4 * 5 = 21', '3 + 21 = 24', 1.0),  # follows from the wrong line before it
    ('4 * 5 = 21', '3 + 20 = 23', 0.0),
    ('4 * 5 = 20\n3 + 20 = 23\n23 - 60 = -37', '-37', 1.0),
    ('4 * 5 = 20\n3 + 20 = 23\n23 - 60 = -37', '37', 0.0),
    ('4 * 5 = 20', '23', 0.0),
    ('no equation', '3 + 20 = 23', 0.0),
    ('1 = 1\n' * 5, '1', 0.0),
  ],
)
def test_a_line_is_right_if_it_follows_from_the_lines_before(line_grader, before, text, grade):
  assert line_grader('3 + 4 * 5 - 60', before, text) == grade


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  to = tmp_path_factory.mktemp('chains')
  sizes = ['--dim=32', '--layers=1', '--heads=2', '--kv_heads=1', '--mlp_dim=32']
  command = ['chains', f'--to={to}/data', '--largest_term=5', '--train_rows=3400', *sizes]
  assert tasks.main(command) == 0
  return to


def test_every_arm_of_the_config_is_valid(folder):
  file = config_files.load('arithmetic_objectives')
  assert file.get_config(f'warm_up:{folder}').problems() == []
  with pytest.raises(ValueError, match='is missing; run .*warm_up'):
    file.get_config(f'response:{folder}')
  (folder / 'warm_up' / 'export').mkdir(parents=True)
  for arm in ('warm_up', *file.ARMS):
    config = file.get_config(f'{arm}:{folder}')
    assert config.problems() == []
    assert (config.credit.level == 'reasoning_step') == ('step' in arm)
    assert (config.stages[0].algorithm == 'ppo') == ('ppo' in arm) or arm == 'warm_up'
  warm_up_rows, rows = (
    set((folder / 'data' / f'{name}.jsonl').read_text().splitlines())
    for name in ('shown', 'answers')
  )
  assert len(warm_up_rows) == 2400 and len(rows) == 1000 and not warm_up_rows & rows


def test_an_unknown_arm_and_an_empty_folder_are_errors(tmp_path):
  file = config_files.load('arithmetic_objectives')
  with pytest.raises(ValueError, match="arm 'steps', need one of"):
    file.get_config('steps')
  with pytest.raises(ValueError, match='python -m rft_jax.tasks chains .*--to='):
    file.get_config(f'response:{tmp_path}')


def test_the_prefix_grader_counts_right_lines():
  file = config_files.load('arithmetic_objectives')
  grader = graders.make(file.PREFIX_GRADER)
  item = {'messages': [{'role': 'user', 'content': '3 + 4 * 5 - 6'}]}
  grade = lambda text: grader(item, {'output_text': text}).reward
  assert grade('4 * 5 = 20') == pytest.approx(1 / 3)
  assert grade('4 * 5 = 20\n3 + 20 = 24') == pytest.approx(1 / 3)
  assert grade('4 * 5 = 20\n3 + 20 = 24\n24 - 6 = 18') == pytest.approx(2 / 3)
  assert grade('four') == 0.0
  grader.close()
