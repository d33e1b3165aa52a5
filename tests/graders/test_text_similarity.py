"""text_similarity: its metrics compared with the libraries that define them, and its refusals."""

import json
import math
import os
import subprocess
import sys

import pytest
import rapidfuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate import bleu_score, gleu_score
from paths import ROOT
from rouge_score import rouge_scorer

from rft_jax import graders

SIMILARITY = {
  'type': 'text_similarity',
  'name': 'similarity',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
  'evaluation_metric': 'fuzzy_match',
}
TEXTS = [
  ('the cat sat on the mat', 'the cat sat on the mat'),
  ('the cat sat on a mat today', 'a cat is on the mat'),
  ('The CAT, sat!', 'the cat sat'),
  ('BRCA2', 'brca-2'),
  ('', 'something'),
  ('something', ''),
  ('', ''),
  ('naïve façade 東京', 'naive facade 東京'),
  ('one two three four five six', 'six five four three two one'),
  ('!!!', '!!!'),
]
# The definition of each metric: (answer, reference) -> score.
DEFINITIONS = {
  'bleu': lambda a, b: bleu_score.sentence_bleu(
    [b.split()], a.split(), smoothing_function=bleu_score.SmoothingFunction().method1
  ),
  'gleu': lambda a, b: gleu_score.sentence_gleu([b.split()], a.split()),
  **{
    f'rouge_{n}': lambda a, b, n=n: (
      rouge_scorer.RougeScorer([f'rouge{n}'], use_stemmer=False).score(b, a)[f'rouge{n}'].fmeasure
    )
    for n in range(1, 6)
  },
  'rouge_l': lambda a, b: (
    rouge_scorer.RougeScorer(['rougeL'], use_stemmer=False).score(b, a)['rougeL'].fmeasure
  ),
  'fuzzy_match': lambda a, b: (
    rapidfuzz.fuzz.WRatio(a, b, processor=rapidfuzz.utils.default_process) / 100
  ),
}


def score(metric, answer, reference, **fields):
  grader = graders.make({**SIMILARITY, 'evaluation_metric': metric, **fields})
  return grader({'answer': reference}, {'output_text': answer}).reward


def refusal(**fields):
  with pytest.raises(ValueError) as caught:
    graders.make({**SIMILARITY, **fields})
  return str(caught.value)


@pytest.mark.parametrize('metric', DEFINITIONS)
def test_each_metric_equals_its_definition(metric):
  scores = [score(metric, answer, reference) for answer, reference in TEXTS]
  assert scores == [DEFINITIONS[metric](answer, reference) for answer, reference in TEXTS]
  assert min(scores) < scores[0] == 1.0


@pytest.mark.parametrize('variant', ['ratio', 'token_set_ratio'])
def test_a_variant_of_fuzzy_match_is_the_rapidfuzz_function_of_that_name(variant):
  for answer, reference in TEXTS:
    assert (
      score('fuzzy_match', answer, reference, variant=variant)
      == getattr(rapidfuzz.fuzz, variant)(
        answer, reference, processor=rapidfuzz.utils.default_process
      )
      / 100
    )
  assert score('fuzzy_match', 'b a', 'a b', variant='token_set_ratio') == 1.0
  assert score('fuzzy_match', 'b a', 'a b', variant='ratio') < 1.0


def test_worked_values():
  # Of 4 words against 4: 3 words, 2 pairs, 1 triple, 0 fours in common; smoothing puts 0.1 of 1.
  assert score('bleu', 'a b c x', 'a b c d') == pytest.approx(
    (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** 0.25
  )
  assert score('bleu', 'a b', 'a b') == pytest.approx(0.316, abs=1e-3)
  # The same n-grams, 10 in each text: 6 in common.
  assert score('gleu', 'a b c x', 'a b c d') == pytest.approx(6 / 10)
  # Words 2 of 3 and 2 of 4 in common: F = 2 * (2/3) * (2/4) / (2/3 + 2/4).
  assert score('rouge_1', 'x a b', 'a b c d') == pytest.approx(4 / 7)
  assert score('rouge_l', 'b a', 'a b') == pytest.approx(1 / 2)
  assert score('rouge_1', '東京', '東京') == 0.0


@pytest.mark.parametrize('metric', DEFINITIONS)
def test_any_two_texts_have_a_score_between_0_and_1(metric):
  grader = graders.make({**SIMILARITY, 'evaluation_metric': metric})

  @settings(max_examples=40, deadline=None)
  @given(st.text(st.characters(), max_size=30), st.text(st.characters(), max_size=30))
  def holds(answer, reference):
    grade = grader({'answer': reference}, {'output_text': answer})
    assert 0.0 <= grade.reward <= 1.0 + 1e-9 and math.isfinite(grade.reward)
    assert grade.components == {'similarity': grade.reward} and grade.errors == {}

  holds()


def test_a_missing_field_is_a_fault_of_the_row_or_of_the_answer():
  grader = graders.make(SIMILARITY, ungradable_reward=-1.0)
  assert grader({}, {'output_text': 'x'}).reward is None
  assert grader({'answer': 'x'}, {}).reward == -1.0
  assert grader.item_fields() == {'answer'}


def test_an_unavailable_metric_is_refused_with_the_way_out():
  assert "did you mean 'rouge_l'" in refusal(evaluation_metric='rougel')
  assert 'need one of fuzzy_match, bleu' in refusal(evaluation_metric=None)
  assert 'embedding model' in refusal(evaluation_metric='cosine')
  assert "did you mean 'ratio'" in refusal(variant='ratios')
  assert 'only for fuzzy_match' in refusal(evaluation_metric='bleu', variant='ratio')
  message = refusal(evaluation_metric='rouge', input='{{ smaple.output_text }}', pass_threshold='1')
  assert (
    "evaluation_metric='rouge'" in message and 'smaple' in message and 'pass_threshold' in message
  )


def test_describe_returns_the_grader_json():
  grader_json = {**SIMILARITY, 'variant': 'ratio', 'pass_threshold': 0.8}
  assert graders.describe(graders.make(grader_json)) == grader_json


# --- meteor ---------------------------------------------------------------------------------------
def in_a_process_with(data_folder, code):
  """Runs code where nltk finds its data in data_folder alone; returns what it prints."""
  code = f'import nltk\nnltk.data.path[:] = [{str(data_folder)!r}]\n' + code
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def write_wordnet(folder):
  """Writes a WordNet of two synsets, {word} and {car, auto}, in its file format."""
  folder.mkdir(parents=True)
  for kind in ('adj', 'adv', 'noun', 'verb'):
    for name in (f'data.{kind}', f'index.{kind}', f'{kind}.exc'):
      (folder / name).write_text('')
  (folder / 'lexnames').write_text('00\tnoun.Tops\t1\n')
  (folder / 'index.sense').write_text('')
  data, index = '', ''
  for words in (['word'], ['car', 'auto']):
    offset = len(data)
    spelt = ' '.join(f'{word} 0' for word in words)
    data += f'{offset:08} 00 n {len(words):02x} {spelt} 000 | a meaning\n'
    index += ''.join(f'{word} n 1 0 1 0 {offset:08}\n' for word in words)
  (folder / 'data.noun').write_text(data)
  (folder / 'index.noun').write_text(index)


@pytest.mark.full
def test_meteor_without_wordnet_is_refused(tmp_path):
  output = in_a_process_with(
    tmp_path,
    f"""
from rft_jax import graders
try:
  graders.make({{**{SIMILARITY!r}, 'evaluation_metric': 'meteor'}})
except ValueError as error:
  print(error)
""",
  )
  assert 'needs the WordNet data' in output and 'python -m nltk.downloader wordnet' in output


@pytest.mark.full
def test_meteor_with_wordnet_equals_nltk_and_uses_synonyms(tmp_path):
  write_wordnet(tmp_path / 'corpora' / 'wordnet')
  output = in_a_process_with(
    tmp_path,
    f"""
import json
from nltk.translate.meteor_score import meteor_score
from rft_jax import graders
grader = graders.make({{**{SIMILARITY!r}, 'evaluation_metric': 'meteor'}})
texts = [('a b', 'a b'), ('the car', 'the auto'), ('the car', 'the boat'), ('', '')]
print(json.dumps([[grader({{'answer': b}}, {{'output_text': a}}).reward,
                   meteor_score([b.split()], a.split())] for a, b in texts]))
""",
  )
  scores, expected = zip(*json.loads(output))
  assert scores == expected
  assert scores[0] == scores[1] == pytest.approx(0.938, abs=1e-3) and scores[2] < scores[1]
  assert scores[3] == 0.0
