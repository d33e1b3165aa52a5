"""The `text_similarity` grader: fuzzy match, BLEU, GLEU, METEOR or ROUGE between two texts."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

VARIANTS = ('ratio', 'token_set_ratio')  # of fuzzy_match; the default is the weighted ratio
WORDNET_MISSING = (
  "evaluation_metric='meteor' needs the WordNet data of nltk, which cannot be read (nothing is "
  'downloaded during a run): run `python -m nltk.downloader wordnet`, and set NLTK_DATA to its '
  'folder if that is not one of the defaults of nltk; or choose another metric'
)
COSINE_UNAVAILABLE = (
  "evaluation_metric='cosine' needs an embedding model, which this version cannot load "
  '(OpenAI uses text-embedding-3-large, in evals only, not in fine-tuning): choose '
  'another metric, or call your own model from a python grader'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSimilarity:
  """Scores in [0, 1] the similarity of input and reference, two rendered templates.

  The `text_similarity` grader of the OpenAI API. The API names the metrics without details; they
  are computed by these libraries:

    fuzzy_match     rapidfuzz.fuzz.WRatio / 100 after rapidfuzz.utils.default_process (lower case,
                    letters and digits only); variant: ratio or token_set_ratio instead
    bleu            nltk sentence_bleu of words split at white space, up to 4-grams, smoothing
                    method 1: two equal texts of fewer than four words score below 1
    gleu            nltk sentence_gleu of the same words
    meteor          nltk meteor_score of the same words; needs the WordNet data
    rouge_1 .. _5   rouge-score's F-measure of n-grams; its tokenizer keeps only a-z and 0-9, so
                    a text in another script scores 0
    rouge_l         rouge-score's F-measure of the longest common subsequence
    cosine          of embeddings; refused, as there is no embedding model

      TextSimilarity(name='near', input='{{ sample.output_text }}',
                     reference='{{ item.answer }}', evaluation_metric='fuzzy_match')

  Raises:
    ValueError: at construction, listing every problem: unknown metric, missing data, bad template.
  """

  name: str
  input: str
  reference: str
  evaluation_metric: str
  variant: str | None = None  # of fuzzy_match; None: the weighted ratio
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  _similarity: Callable[[str, str], float] = dataclasses.field(
    init=False, repr=False, compare=False
  )

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(self, '_similarity', _similarity(self.evaluation_metric, self.variant))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = base.template_problems(fields, ('input', 'reference'))
    metric, variant = fields.get('evaluation_metric', 'fuzzy_match'), fields.get('variant')
    if not isinstance(metric, str) or metric not in (*METRICS, 'cosine'):
      hint = template.did_you_mean(metric, METRICS)
      problems.append(f'evaluation_metric={metric!r}{hint}, need one of {", ".join(METRICS)}')
    elif metric == 'cosine':
      problems.append(f'{COSINE_UNAVAILABLE}; available: {", ".join(METRICS)}')
    elif metric == 'meteor' and not _has_wordnet():
      problems.append(WORDNET_MISSING)
    if variant is not None and variant not in VARIANTS:
      hint = template.did_you_mean(variant, VARIANTS)
      problems.append(
        f'variant={variant!r}{hint}, need one of {", ".join(VARIANTS)}, or none for '
        'the weighted ratio'
      )
    elif variant is not None and metric != 'fuzzy_match':
      problems.append(
        f'variant={variant!r} is only for fuzzy_match, and evaluation_metric is {metric!r}: '
        'leave it out'
      )
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text, reference = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    score = float(self._similarity(text, reference))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""


# --- the metrics: each loads its library and returns (text, reference) -> score -------------------
def _similarity(metric: str, variant: str | None) -> Callable[[str, str], float]:
  return _fuzzy_match(variant) if metric == 'fuzzy_match' else METRICS[metric]()


def _fuzzy_match(variant: str | None = None):
  from rapidfuzz import fuzz, utils

  ratio = getattr(fuzz, variant or 'WRatio')
  return lambda text, reference: ratio(text, reference, processor=utils.default_process) / 100


def _bleu():
  from nltk.translate import bleu_score

  smoothing = bleu_score.SmoothingFunction().method1
  return lambda text, reference: bleu_score.sentence_bleu(
    [reference.split()], text.split(), smoothing_function=smoothing
  )


def _gleu():
  from nltk.translate import gleu_score

  return lambda text, reference: gleu_score.sentence_gleu([reference.split()], text.split())


def _meteor():
  from nltk.translate import meteor_score

  return lambda text, reference: meteor_score.meteor_score([reference.split()], text.split())


def _rouge(kind: str):
  def load():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
    return lambda text, reference: scorer.score(reference, text)[kind].fmeasure

  return load


METRICS = {
  'fuzzy_match': _fuzzy_match,
  'bleu': _bleu,
  'gleu': _gleu,
  'meteor': _meteor,
  **{f'rouge_{n}': _rouge(f'rouge{n}') for n in range(1, 6)},
  'rouge_l': _rouge('rougeL'),
}


def _has_wordnet() -> bool:
  """Returns whether WordNet can be read.

  A word is looked up in the data. Computing METEOR would not be a test: it looks up only words
  that match in no other way, so it scores two equal texts without WordNet.
  """
  from nltk.corpus import wordnet

  try:
    return bool(wordnet.synsets('word'))
  except Exception:  # absent files raise LookupError; for damaged ones nltk documents no error
    return False
