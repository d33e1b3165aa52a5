"""The `text_similarity` grader: how near one text is to another, by a named metric."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

VARIANTS = ('ratio', 'token_set_ratio')  # of fuzzy_match, besides the weighted one
WORDNET_MISSING = (
  "evaluation_metric='meteor' needs the WordNet data of nltk, which cannot be read here (and "
  'nothing is downloaded during a run): python -m nltk.downloader wordnet, with NLTK_DATA set to '
  'its folder if that is not a usual place; or choose another metric'
)
NO_EMBEDDINGS = (
  "evaluation_metric='cosine' needs an embedding model, and this version can load none, so there "
  'is nothing to install (at OpenAI it is text-embedding-3-large, in evals only, never in '
  'fine-tuning): choose another metric, or call a model of your own from a python grader'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSimilarity:
  """Scores in [0, 1] how near input is to reference, two rendered templates.

  The `text_similarity` grader of the OpenAI API. It names the metrics and not their details;
  here they are, as libraries compute them:

    fuzzy_match     rapidfuzz.fuzz.WRatio / 100 after rapidfuzz.utils.default_process (lower case,
                    letters and digits alone); variant: ratio or token_set_ratio in its place
    bleu            nltk sentence_bleu of the words between white space, up to 4-grams, smoothing
                    method 1: two equal texts of fewer than four words score below 1
    gleu            nltk sentence_gleu of the same words
    meteor          nltk meteor_score of the same words; needs the WordNet data
    rouge_1 .. _5   rouge-score's F-measure of n-grams; its tokenizer keeps a-z and 0-9 alone, so
                    a text in another script scores 0
    rouge_l         the same of the longest common subsequence
    cosine          of embeddings; refused, there being no model

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
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  _similarity: Callable[[str, str], float] = dataclasses.field(
    init=False, repr=False, compare=False
  )

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(self, '_similarity', _similarity(self.evaluation_metric, self.variant))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = base.template_problems(given, ('input', 'reference'))
    metric, variant = given.get('evaluation_metric', 'fuzzy_match'), given.get('variant')
    if not isinstance(metric, str) or metric not in (*METRICS, 'cosine'):
      hint = template.did_you_mean(metric, METRICS)
      found.append(f'evaluation_metric={metric!r}{hint}, need one of {", ".join(METRICS)}')
    elif metric == 'cosine':
      found.append(f'{NO_EMBEDDINGS}; those that work: {", ".join(METRICS)}')
    elif metric == 'meteor' and not _has_wordnet():
      found.append(WORDNET_MISSING)
    if variant is not None and variant not in VARIANTS:
      hint = template.did_you_mean(variant, VARIANTS)
      found.append(
        f'variant={variant!r}{hint}, need one of {", ".join(VARIANTS)}, or none for '
        'the weighted ratio'
      )
    elif variant is not None and metric != 'fuzzy_match':
      found.append(
        f'variant={variant!r} belongs to fuzzy_match alone, and evaluation_metric is '
        f'{metric!r}: leave it out'
      )
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      given, wanted = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
    score = float(self._similarity(given, wanted))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: there is nothing to free."""


# --- the metrics: each loads its library, and returns (given, wanted) -> score --------------------
def _similarity(metric: str, variant: str | None) -> Callable[[str, str], float]:
  return _fuzzy_match(variant) if metric == 'fuzzy_match' else METRICS[metric]()


def _fuzzy_match(variant: str | None = None):
  from rapidfuzz import fuzz, utils

  ratio = getattr(fuzz, variant or 'WRatio')
  return lambda given, wanted: ratio(given, wanted, processor=utils.default_process) / 100


def _bleu():
  from nltk.translate import bleu_score

  smoothing = bleu_score.SmoothingFunction().method1
  return lambda given, wanted: bleu_score.sentence_bleu(
    [wanted.split()], given.split(), smoothing_function=smoothing
  )


def _gleu():
  from nltk.translate import gleu_score

  return lambda given, wanted: gleu_score.sentence_gleu([wanted.split()], given.split())


def _meteor():
  from nltk.translate import meteor_score

  return lambda given, wanted: meteor_score.meteor_score([wanted.split()], given.split())


def _rouge(kind: str):
  def load():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
    return lambda given, wanted: scorer.score(wanted, given)[kind].fmeasure

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

  The data itself is asked for a word. METEOR would not tell: it looks up only the words that
  match in no other way, so it scores two equal texts without WordNet.
  """
  from nltk.corpus import wordnet

  try:
    return bool(wordnet.synsets('word'))
  except Exception:  # absent is a LookupError; what damaged files raise, nltk does not say
    return False
