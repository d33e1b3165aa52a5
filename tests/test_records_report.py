"""The report page: what it says of a finished run, an unfinished one, and an empty workdir."""
import html.parser
import json
import math
import random
import re

import pytest

from rft_jax.records import comparison, figures, held_out, ledger, manifest, metrics, report
from rft_jax.types import Episode, Grade, Item, Sample

STEPS = (40, 160)  # of the stages
GENES = ('FBN1', 'GLA', 'PAH', 'MECP2', 'DMD', 'SMN1', 'HTT', 'CFTR')


def fake_interval(mean, half):
  return {'mean': mean, 'low': max(mean - half, 0.0), 'high': min(mean + half, 1.0)}


def fake_evaluation(random_, progress, noise=0.01):
  """Held-out numbers of a policy that has come so far (0 to 1) in learning the task."""
  grade = 0.24 + 0.41 * progress + random_.gauss(0, noise)
  return {
      'grade': fake_interval(grade, 0.045), 'pass@1': fake_interval(grade - 0.06, 0.05),
      'pass@4': fake_interval(min(grade + 0.17, 0.95), 0.05),
      'greedy/grade': fake_interval(grade + 0.02, 0.06),
      'truncated': fake_interval(0.16 * (1 - progress) + 0.004, 0.01),
      'unparsable': fake_interval(0.22 * (1 - progress) ** 2 + 0.002, 0.01),
      'mean_tokens': {'mean': 410 - 120 * progress, 'low': 395 - 120 * progress,
                      'high': 424 - 120 * progress},
  }


def fake_manifest():
  digest = manifest.sha256_text
  return {
      'started': '2026-03-02T09:14:05+00:00', 'command': ['main.py', '--config=configs/demo.py'],
      'overrides': ['--config.seed=3'], 'seed': 3,
      'config': {'seed': 3, 'model': {'source': 'org/small-instruct-0.6b', 'dtype': 'bfloat16'},
                 'chat': {'reasoning': ['<think>', '</think>'], 'template_kwargs': {}},
                 'stages': [{'algorithm': 'sft', 'steps': STEPS[0]},
                            {'algorithm': 'grpo', 'steps': STEPS[1]}],
                 'rollout': {'prompts_per_step': 16, 'samples_per_prompt': 8}},
      'versions': {'python': '3.11.9', 'jax': '0.10.2', 'rft_jax': '0.1.0'},
      'git': {'commit': digest('commit')[:40], 'dirty': False},
      'devices': {'kind': 'TPU v5 lite', 'platform': 'tpu', 'count': 8, 'processes': 1},
      'mesh': {'data': 2, 'fsdp': 4, 'tensor': 1},
      'prng': {'implementation': 'threefry2x32', 'partitionable': True},
      'sha256': {'data': {'train': [{'file': 'cases.jsonl', 'sha256': digest('train')}],
                          'validation': [{'file': 'held_out.jsonl', 'sha256': digest('valid')}]},
                 'base': [{'file': 'model.safetensors', 'sha256': digest('base')}],
                 'template': digest('template'), 'grader': digest('grader')},
  }


def fake_training(random_, step):
  if step < STEPS[0]:
    return {'loss': 1.9 * math.exp(-step / 15) + 0.6 + random_.gauss(0, 0.03),
            'mean_token_accuracy': 0.8 - 0.3 * math.exp(-step / 12), 'learning_rate': 1e-5}
  progress = 1 - math.exp(-(step - STEPS[0]) / 60)
  return {
      'reward': 0.30 + 0.38 * progress + random_.gauss(0, 0.05),
      'reward_std': 0.31 - 0.1 * progress, 'loss': random_.gauss(0, 0.01),
      'completions/mean_length': 400 - 115 * progress + random_.gauss(0, 12),
      'completions/clipped_ratio': max(0.12 * (1 - progress) + random_.gauss(0, 0.01), 0),
      'unparsable': max(0.08 * (1 - progress) + random_.gauss(0, 0.01), 0),
      'entropy': 0.95 - 0.5 * progress + random_.gauss(0, 0.02),
      'kl': 0.06 * progress + abs(random_.gauss(0, 0.003)),
      'frac_reward_zero_std': 0.1 + 0.2 * progress + abs(random_.gauss(0, 0.03)),
      'sampling/sampling_logp_difference/mean': 0.002 + abs(random_.gauss(0, 2e-4)),
      'grad_norm': 0.4 + abs(random_.gauss(0, 0.1)), 'learning_rate': 1e-6 * (1 - progress / 2),
      'rewards/gene/mean': 0.2 + 0.4 * progress + random_.gauss(0, 0.05),
      'rewards/format/mean': 0.9 + 0.1 * progress,
  }


def fake_answers(progress, rows=60):
  """A greedy and four sampled answers to each held-out row, the greedy ones first."""
  thought = ('The tall habitus and the lens point to a disorder of the extracellular matrix. '
             'Homocystinuria would lower the lens the other way and often impairs cognition. ')
  episodes = []
  for number in range(rows):
    draw = random.Random(number)  # the same case before and after
    gene, wrong = draw.sample(GENES, 2)
    case = (f'A {draw.randint(2, 61)}-year-old with long fingers, a dilated aortic root and '
            'lens dislocation; no intellectual disability. Father died suddenly at 41. Which gene '
            'is most likely at fault? Answer with JSON {"genes": [...]}, most likely first.')
    row = {'messages': [{'role': 'developer', 'content': 'You are a clinical geneticist.'},
                        {'role': 'user', 'content': case}], 'gene': gene}
    for index in (0, 0, 1, 2, 3):  # greedy, then sampled
      right = draw.random() < 0.25 + 0.4 * progress
      answer = json.dumps({'genes': [gene, wrong] if right else [wrong]})
      never_ends = number == 1 and not progress
      text = f'<think>{thought * (1 if progress else 3)}' + (
          '' if never_ends else f'So {gene}.</think>{answer}')
      length = max(int(draw.gauss(400 - 115 * progress, 70)), 20)
      sample = Sample([7] * length, [-0.5] * length, None, 'stop')
      episodes.append(Episode(
          Item(row, f'held_out.jsonl:{number + 1}'), number, index, [1, 2, 3], sample, text, answer,
          length // 2, Grade(float(right), {'gene': float(right)}, {}), 0))
  return episodes[::5] + [episode for n, episode in enumerate(episodes) if n % 5]


def fake_training_episode(step, number, reward):
  sample = Sample([7] * (50 + number), [-0.5] * (50 + number), None, 'stop')
  return Episode(Item({'messages': []}, f'cases.jsonl:{number}'), number, 0, [1], sample, 'text',
                 'answer', 4, Grade(reward, {}, {}), step)


def fake_workdir(workdir, *, steps=sum(STEPS), seed=5):
  """Writes what a run of `steps` steps leaves behind, with the writers that runs use."""
  random_ = random.Random(seed)
  manifest.write(workdir, fake_manifest())
  tokens = 0
  with metrics.Metrics(workdir) as log:
    for step in range(steps):
      if step % 20 == 0:
        log.evaluation(step, 'validation', 120,
                       fake_evaluation(random_, 1 - math.exp(-step / 70)))
      values = fake_training(random_, step)
      tokens += 128 * values.get('completions/mean_length', 300)
      log.write(step + 1, values | {'num_tokens': int(tokens), 'stage': int(step >= STEPS[0]),
                                    'seconds/collect': random_.gauss(15, 1),
                                    'seconds/update': random_.gauss(6, 0.5)})
    log.evaluation(steps, 'validation', 120, fake_evaluation(random_, 1 - math.exp(-steps / 70)))
  for step in (0, steps):
    ledger.write(workdir / 'evaluations', step, fake_answers(step / steps))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run, another to compare with, and a reference; the page as text."""
  folder = tmp_path_factory.mktemp('runs')
  fake_workdir(folder / 'run')
  with metrics.Metrics(folder / 'sft_only') as log:
    log.evaluation(40, 'validation', 120, fake_evaluation(random.Random(1), 0.45))
  (folder / 'bayes.json').write_text(json.dumps({
      'Bayes-optimal': {'mean': 0.81, 'low': 0.79, 'high': 0.83}}))
  config = report.ReportConfig(compare=(f'SFT alone={folder / "sft_only"}',),
                               reference=str(folder / 'bayes.json'))
  path = report.write(folder / 'run', title='Rare disease: gene from findings', config=config)
  return path, path.read_text(encoding='utf-8')


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
      'Held-out rows, before and after', 'Every measure', 'Learning curves', 'Training reward',
      'Held-out grade', 'Completion length', 'Cut off and unreadable', 'Entropy',
      'Distance from the reference', 'How grades and lengths moved', 'Grades', 'Lengths',
      'Transcripts', 'Provenance']
  assert {'frac_reward_zero_std', 'rewards/gene/mean', 'mean_token_accuracy'} <= set(
      outline.headings)  # all other metrics, by name


def test_the_verdict_says_the_grades_and_the_change(finished):
  rows = metrics.read(finished[0].parent / metrics.EVALUATION)
  before, after = rows[0]['grade'], rows[-1]['grade']
  headline = re.search(r'class="headline">(.*?)<', finished[1])[1]
  assert headline == ('Training helped: the held-out grade rose from '
                      f'{before["mean"]:.2f} to {after["mean"]:.2f}')


def test_all_arms_stand_beside_each_other(finished):
  rows = re.findall(r'<th scope="row">([^<]*)</th>\s*<td class="score">\s*([\d.]+)', finished[1])
  assert [label for label, _ in rows] == ['Before training', 'After 200 steps', 'SFT alone',
                                          'Bayes-optimal']
  assert float(rows[3][1]) == 0.81


def test_charts_take_their_colours_from_the_page(finished):
  page = finished[1]
  assert page.count('<svg') == 19 and 'var(--after)' in page
  drawn = ' '.join(re.findall(r'<svg.*?</svg>', page))
  assert not re.search(r'#[0-9a-f]{6};|DejaVu', drawn)
  assert 'SFT' not in drawn and 'Bayes-optimal' in drawn and '>grpo<' in drawn


def test_hashes_are_short_with_the_whole_at_hand(finished):
  digest = manifest.sha256_text('train')
  assert f'<abbr title="{digest}"><code>{digest[:12]}…</code></abbr>' in finished[1]


def test_reasoning_is_apart_from_the_answer(finished):
  page = finished[1]
  assert page.count('class="card transcript"') == 6  # of sixty
  assert '&lt;think&gt;' not in page.split('<summary>Config')[0]
  assert 'The reasoning never ended, so there is no answer.' in page
  assert page.count('reasoning" tabindex="0">The tall habitus') == 12  # also of that one
  assert re.search(r'class="scroll answer" tabindex="0">\{&#34;genes', page)


def test_text_of_the_model_cannot_become_markup(tmp_path):
  evil = '<script>alert(1)</script><b>"&'
  (tmp_path / 'transcripts.json').write_text(json.dumps([
      {'prompt': evil, 'reference': {'a': evil},
       'arms': [{'label': evil, 'reward': None, 'text': evil}]}]))
  page = report.write(tmp_path, title=evil).read_text()
  assert '<script' not in page and '<b>' not in page and '&lt;script&gt;' in page
  assert 'not graded' in page


def test_an_empty_workdir_gives_a_page_that_says_what_is_missing(tmp_path):
  page = report.write(tmp_path, title='nothing yet').read_text()
  assert Outline(page).headings == ['Left out']
  for missing in ('Not evaluated yet', 'no held-out evaluation', 'metrics.jsonl has fewer',
                  'no manifest.json', 'no answers to held-out rows', 'too few samples'):
    assert missing in page


def test_an_interrupted_run_says_how_far_it_came(tmp_path):
  manifest.write(tmp_path, fake_manifest())
  with metrics.Metrics(tmp_path) as log:
    log.evaluation(0, 'validation', 120, fake_evaluation(random.Random(0), 0))
    for step in range(3):
      log.write(step, {'loss': 2.0 - step, 'num_tokens': 10 * step, 'reward': None})
  page = report.write(tmp_path, title='stopped').read_text()
  assert '3 of 200' in page and 'nothing to compare it with yet' in page
  assert 'there is one held-out evaluation so far' in page
  assert 'Training reward' not in Outline(page).headings


def test_a_missing_arm_is_said_to_be_missing(tmp_path):
  config = report.ReportConfig(compare=('other=' + str(tmp_path / 'none'),))
  page = report.write(tmp_path, title='t', config=config).read_text()
  assert 'other: ' in page and 'has no evaluation.jsonl' in page


def evaluation_row(step, mean, half, **values):
  return {'step': step, 'split': 'validation', 'rows': 50, 'grade': fake_interval(mean, half),
          **values}


@pytest.mark.parametrize('after, half, tone', [
    (0.60, 0.05, 'better'), (0.20, 0.05, 'worse'), (0.45, 0.05, 'same'),
    # Half widths 0.05 make a half width of 0.0707: intervals that overlap can still be apart.
    (0.47, 0.05, 'same'), (0.48, 0.05, 'better')])
def test_the_tone_follows_the_interval_of_the_change(after, half, tone):
  said = comparison.verdict(evaluation_row(0, 0.40, 0.05), evaluation_row(9, after, half))
  assert said['tone'] == tone


def test_a_paired_change_is_preferred():
  paired = {'mean': 0.05, 'low': 0.02, 'high': 0.08}
  said = comparison.verdict(evaluation_row(0, 0.40, 0.05), evaluation_row(9, 0.45, 0.05), paired)
  assert said['tone'] == 'better'
  assert '+0.05 (paired over rows, 95 % interval +0.02 to +0.08)' in said['detail']


def test_pairing_takes_out_how_hard_a_row_is():
  def answers(grades):
    return {n: held_out.Answers({}, [{'reward': grade}]) for n, grade in enumerate(grades)}
  before, after = answers([0.0, 0.5, 1.0, 0.2]), answers([0.1, 0.6, 1.2, None])
  change = held_out.paired_change(before, after)
  # Changes 0.1, 0.1, 0.2: mean 2/15, standard deviation 0.1 / sqrt(3), over sqrt(3) rows.
  half = 1.96 * 0.1 / 3
  assert change == pytest.approx({'mean': 2 / 15, 'low': 2 / 15 - half, 'high': 2 / 15 + half})
  assert held_out.paired_change(before, {}) is None


def test_distributions_fall_back_on_the_first_and_last_training_steps(tmp_path):
  for step in range(1, 7):
    ledger.write(tmp_path, step, [fake_training_episode(step, n, step / 6) for n in range(100)])
  page = report.write(tmp_path, title='t').read_text()
  assert 'Training samples: 300 of steps 1 to 3 as before, 300 of steps 4 to 6 as after.' in page
  assert 'Grades. mean 0.333 before, 0.833 after' in page


def test_better_means_less_of_what_is_bad():
  first = evaluation_row(0, 0.4, 0.05, truncated=fake_interval(0.3, 0.02),
                         mean_tokens=fake_interval(0.9, 0.01), unparsable=fake_interval(0.1, 0.1))
  last = evaluation_row(9, 0.2, 0.05, truncated=fake_interval(0.1, 0.02),
                        mean_tokens=fake_interval(0.2, 0.01), unparsable=fake_interval(0.05, 0.1))
  words = {row['name']: row['word'] for row in comparison.measures(first, last)}
  assert words == {'grade': 'worse', 'truncated': 'better', 'mean_tokens': '',
                   'unparsable': 'unclear'}


def test_ticks_cover_the_values_and_stay_in_the_unit_interval():
  assert figures.ticks(0.02, 0.97) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  low, *_, high = figures.ticks(13.0, 88.0)
  assert low <= 13 and high >= 88


def test_smoothing_keeps_a_constant_and_bridges_gaps():
  values = [3.0] * 30 + [math.nan] * 2 + [3.0] * 30
  assert all(abs(value - 3.0) < 1e-12 for value in figures.smoothed(figures.np.asarray(values)))


def test_a_reference_of_another_form_is_named(tmp_path):
  path = tmp_path / 'reference.json'
  path.write_text('{"Bayes": 0.8}')
  with pytest.raises(ValueError, match="reference.json: 'Bayes' is 0.8, need an object"):
    report.write(tmp_path, title='t', config=report.ReportConfig(reference=str(path)))


def test_report_config_problems_are_all_listed():
  assert report.ReportConfig(compare=('a=b',)).validate() == []
  problems = report.ReportConfig(compare=('a', '=b', 'c='), transcripts=-1).validate()
  assert len(problems) == 4 and problems[0].startswith("compare='a', need label=")
