"""The report page: what it says of a finished run, an unfinished one, and an empty workdir."""

import html.parser
import json
import random
import re

import fake_runs
import pytest

from rft_jax.records import manifest, metrics
from rft_jax.report import held_out, report


class Outline(html.parser.HTMLParser):
  """Open tags, ids and references of a page; raises on a tag closed out of turn."""

  VOID = {'meta', 'br', 'hr', 'img', 'link', 'input'}

  def __init__(self, page):
    super().__init__()
    self.open, self.ids, self.loads, self.headings, self.rows = [], [], [], [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.loads += [attrs[key] for key in ('src', 'href', 'xlink:href', 'srcset') if key in attrs]
    self.loads += [tag] if tag in ('script', 'link', 'iframe', 'object') else []
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('h2', 'h3') and data.strip():
      self.headings.append(data.strip())


@pytest.mark.full
def test_the_page_is_well_formed_and_loads_nothing(finished):
  page = finished[1]
  outline = Outline(page)
  assert outline.open == []
  assert all(reference.startswith('#f') for reference in outline.loads)
  assert {reference[1:] for reference in outline.loads} <= set(outline.ids)
  assert len(set(outline.ids)) == len(outline.ids)
  assert not re.search(r'https?:|@import|url\((?!#)', page)


def test_the_page_has_every_section(finished):
  outline = Outline(finished[1])
  assert [h for h in outline.headings if h[0].isupper()] == [
    'Held-out grade of each policy',
    'All metrics',
    'Learning curves',
    'Held-out grade',
    'Training reward',
    'Completion length',
    'Truncated and unparsable',
    'Entropy',
    'Log-probs of sampler and trainer',
    'KL from the reference policy',
    'Grades and lengths before and after',
    'Grades',
    'Lengths',
    'Transcripts',
    'Provenance',
  ]
  assert {'frac_reward_zero_std', 'rewards/gene/mean', 'mean_token_accuracy'} <= set(
    outline.headings
  )  # all other metrics, by name


def evaluation_at(workdir, step):
  rows = metrics.read(workdir / metrics.EVALUATION)
  return next(row for row in rows if row['step'] == step)


def test_the_verdict_is_on_the_last_stage_and_says_both_grades(finished):
  before, after = (evaluation_at(finished[0].parent, step) for step in (40, 200))
  headline = re.search(r'class="headline">(.*?)<', finished[1])[1]
  changes = [
    f'from {before[name]["mean"]:.2f} to {after[name]["mean"]:.2f}'
    for name in ('grade', 'greedy/grade')
  ]
  assert headline == (
    f'Reinforcement helped: the sampled held-out grade rose {changes[0]} (greedy {changes[1]})'
  )


def test_another_run_of_the_same_rows_is_paired_with_this_one(folder, finished):
  answers, other_answers = (
    held_out.read(folder / name, {'step': 200}) for name in ('run', 'continued')
  )
  assert held_out.same_rows(answers, other_answers)
  changes = []
  for grade in (held_out.sampled_grade, held_out.greedy_grade):
    change = held_out.paired_change(other_answers, answers, grade)
    changes.append(f'{change["mean"]:+.2f} [{change["low"]:.2f}, {change["high"]:.2f}]')
  assert (
    f'Reinforcement beats “Warm-up continued for the same tokens” by {changes[0]} sampled, '
    f'{changes[1]} greedy.'
  ) in finished[1]
  assert 'This run itself' not in finished[1]


def test_all_policies_are_in_one_table_with_both_grades(folder, finished):
  table = re.search(r'<table class="forest-plot">.*?</table>', finished[1], re.S)[0]
  rows = re.findall(r'<tr class="(\w+)-row">(.*?)</tr>', table, re.S)
  rows_shown = [
    (
      kind,
      re.search(r'row">([^<]*)<', row)[1],
      re.findall(r'</i>\s*([\d.]+)', row),
      re.search(r'trained">([\d,]*)<', row)[1],
    )
    for kind, row in rows
  ]
  expected = []
  for kind, label, name, step in (
    ('before', 'Base checkpoint, step 0', 'run', 0),
    ('before', 'After warm-up: sft, step 40', 'run', 40),
    ('after', 'After reinforcement: grpo, step 200', 'run', 200),
    ('other', 'Warm-up continued for the same tokens', 'continued', 200),
  ):
    row = evaluation_at(folder / name, step)
    trained = {
      values['step']: values['num_tokens']
      for values in metrics.read(folder / name / metrics.TRAINING)
    } | {0: 0}
    expected.append(
      (
        kind,
        label,
        [f'{row[grade]["mean"]:.3f}' for grade in ('grade', 'greedy/grade')],
        f'{trained[step]:,}',
      )
    )
  assert rows_shown == expected + [
    ('reference', 'Bayes optimal', ['0.810'], ''),
    ('reference', 'Reader', ['0.410'], ''),
  ]
  assert table.count('class="dot"') == 2 * 4 + 2 and table.count('class="rule"') == 2 * 6


def test_a_stage_end_that_was_not_evaluated_is_said_to_be_missing(tmp_path):
  manifest.write(tmp_path, fake_runs.run_manifest())
  with metrics.Metrics(tmp_path) as log:
    for step in (0, 200):
      log.write_evaluation(step, 'validation', 60, fake_runs.evaluation(random.Random(0), 0))
  page = report.write(tmp_path, title='t').read_text()
  assert 'The policy after warm-up: not evaluated at step 40.' in page


@pytest.mark.full
def test_a_run_with_another_grader_is_shown_but_not_paired(folder, tmp_path):
  fake_runs.write(tmp_path)
  fields = manifest.read(tmp_path)
  manifest.write(tmp_path, fields | {'sha256': fields['sha256'] | {'grader': 'f' * 64}})
  page = report.write(
    folder / 'run',
    title='t',
    config=report.ReportConfig(compare=(f'x={tmp_path}', f'y={folder / "older"}')),
  ).read_text()
  assert 'x: not compared with this run row by row, because its grader is not the same.' in page
  assert (
    'y: not compared with this run row by row, because its answers to held-out rows were not saved.'
  ) in page
  assert 'Reinforcement beats' not in page
  assert 'class="after-completion"' in page and 'class="other-completion"' not in page


def test_hashes_are_short_with_the_whole_at_hand(finished):
  digest = manifest.sha256_text('train')
  assert f'<abbr title="{digest}"><code>{digest[:12]}…</code></abbr>' in finished[1]


def test_reasoning_is_apart_from_the_answer(finished):
  page = finished[1]
  assert page.count('class="card transcript"') == 6  # of sixty
  assert '&lt;think&gt;' not in page.split('<summary>Config')[0]
  assert page.count('reasoning" tabindex="0">The tall habitus') == 18
  assert re.search(r'class="scroll answer" tabindex="0">\{&#34;genes', page)


def test_transcripts_show_three_policies_next_to_each_other(finished):
  first = re.search(r'<article.*?</article>', finished[1], re.S)[0]
  assert re.findall(r'<section class="(\w+)-completion">\s*<header><h4>([^<]*)<', first) == [
    ('before', 'After warm-up: sft, step 40'),
    ('after', 'After reinforcement: grpo, step 200'),
    ('other', 'Warm-up continued for the same tokens'),
  ]
  assert re.search(r'tabindex="0">gene: [A-Z0-9]+<', first)


def test_reasoning_that_never_ends_is_no_answer(tmp_path):
  fake_runs.write(tmp_path, steps=40)
  page = report.write(tmp_path, title='t').read_text()  # with the base as the policy before
  assert 'The reasoning has no end marker, so there is no answer.' in page


def test_text_of_the_model_cannot_become_markup(tmp_path):
  evil = '<script>alert(1)</script><b>"&'
  (tmp_path / 'transcripts.json').write_text(
    json.dumps(
      [
        {
          'prompt': evil,
          'reference': {'a': evil},
          'completions': [{'label': evil, 'reward': None, 'text': evil}],
        }
      ]
    )
  )
  page = report.write(tmp_path, title=evil).read_text()
  assert '<script' not in page and '<b>' not in page and '&lt;script&gt;' in page
  assert 'not graded' in page


def test_an_empty_workdir_gives_a_page_that_says_what_is_missing(tmp_path):
  page = report.write(tmp_path, title='nothing yet').read_text()
  assert Outline(page).headings == ['Not shown']
  for missing in (
    'Not evaluated yet',
    'no held-out evaluation',
    'metrics.jsonl has fewer',
    'no manifest.json',
    'no answers to held-out rows',
    'too few samples',
  ):
    assert missing in page


def test_an_interrupted_run_says_how_far_it_came(tmp_path):
  manifest.write(tmp_path, fake_runs.run_manifest())
  with metrics.Metrics(tmp_path) as log:
    log.write_evaluation(0, 'validation', 120, fake_runs.evaluation(random.Random(0), 0))
    for step in range(3):
      log.write(step, {'loss': 2.0 - step, 'num_tokens': 10 * step, 'reward': None})
  page = report.write(tmp_path, title='stopped').read_text()
  assert '3 of 200' in page and 'nothing to compare it with yet' in page
  assert 'there is only one held-out evaluation yet' in page
  assert 'Training reward' not in Outline(page).headings


def test_a_missing_run_is_said_to_be_missing(tmp_path):
  config = report.ReportConfig(compare=('other=' + str(tmp_path / 'none'),))
  page = report.write(tmp_path, title='t', config=config).read_text()
  assert 'other: ' in page and 'has no evaluation.jsonl' in page


def test_report_config_problems_are_all_listed():
  assert report.ReportConfig(compare=('a=b',)).validate() == []
  problems = report.ReportConfig(compare=('a', '=b', 'c='), transcripts=-1).validate()
  assert len(problems) == 4 and problems[0].startswith("compare='a', need label=")
