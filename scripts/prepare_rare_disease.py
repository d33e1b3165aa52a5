"""Prepares real rare-disease cases: rows, naive Bayes baseline and base checkpoint for a config.

  python scripts/prepare_rare_disease.py CASES --to=runs/rare_disease

The output is the input of configs/rare_disease_grpo.py. CASES has cases.jsonl.gz and
pmid_split/valid.jsonl, as written by scripts/fetch_rare_disease.py from a clone of the public
phenopacket-store repository.

The rules, the same for every system that is compared:
- Genes: those with at least --cases_per_gene train cases of pmid_split. The held-out rows are
  those of pmid_split/valid.jsonl (at most 12 per gene) with one of these genes.
- A prompt lists coded findings only, '+' present and '-' absent, at most 30 absent ones. A finding
  that occurs with that sign in fewer than two train cases is left out: nothing can be learned from
  it.
- Naive Bayes is fitted on the same train cases, once with the absent findings and once without.

The training rows are copies of the train cases with findings shuffled and dropped at random, so
that the exact list of a publication is not memorized. A gene of n cases gets copies in proportion
to the square root of n. train.jsonl is for the warm-up. train_few.jsonl, for GRPO, has two to six
findings of a case: with more, a policy recognizes the cases of its warm-up, all its samples are
right, and its groups have zero variance.

The target of the warm-up is the true gene, then the nine best others by a naive Bayes that was
fitted without the case's publication and gets the same prompt.
"""

import argparse
import collections
import gzip
import hashlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from rft_jax.records import atomic

RANKS = 10
MAX_ABSENT = 30
MAX_COPIED_FINDINGS = 24  # in a training copy: a bound on its length
FEW_FINDINGS = (2, 6)  # minimum and maximum in a copy for GRPO
DROP_PROBABILITIES = (0.2, 0.5, 0.8)  # per copy, one is drawn and applied to each finding
MAX_ROWS_PER_GENE = 12  # of the held-out rows of a fold, as in valid.jsonl
ASK = 'Rank ten genes as JSON.\n'
OPENING = '{"explanation": "fit of the findings", "genes": ["'


class Cases(NamedTuple):
  """The cases and findings after `select`."""

  genes: list[str]
  findings: list[str]  # '+ Seizure', '- Ataxia': those that prompts use
  train: list[dict[str, Any]]
  held_out: list[dict[str, Any]]


# --- the cases ------------------------------------------------------------------------------------
def read(directory: pathlib.Path) -> tuple[list[dict], list[dict]]:
  """Returns the train cases of pmid_split, and the cases in valid.jsonl.

  The field 'title', which often contains the gene, is removed.

  Raises:
    FileNotFoundError: names the missing file and the script that writes it.
  """
  cases_path, valid_path = directory / 'cases.jsonl.gz', directory / 'pmid_split' / 'valid.jsonl'
  for path in (cases_path, valid_path):
    if not path.is_file():
      raise FileNotFoundError(
        f'{path} is missing. Clone the public repository monarch-initiative/phenopacket-store '
        'and run scripts/fetch_rare_disease.py on it; give its output directory here'
      )
  with gzip.open(cases_path, 'rt', encoding='utf-8') as lines:
    cases = [json.loads(line) for line in lines]
  for case in cases:
    case.pop('title', None)
  with open(valid_path, encoding='utf-8') as lines:
    valid_ids = {json.loads(line)['case_id'] for line in lines}
  return (
    [case for case in cases if case['pmid_split'] == 'train'],
    [case for case in cases if case['case_id'] in valid_ids],
  )


def select(
  train: list[dict], held_out: list[dict], *, cases_per_gene: int, fold: int | None
) -> Cases:
  """Returns the cases of the genes with enough train cases, and the findings that prompts use.

  Args:
    fold: 0 to 3: a quarter of the publications of train, by hash, is held out instead of valid, to
      choose settings without using the held-out rows.
  """
  counts = collections.Counter(case['gene'] for case in train)
  genes = sorted(gene for gene, count in counts.items() if count >= cases_per_gene)
  train = [case for case in train if case['gene'] in genes]
  if fold is not None:
    held_out = [case for case in train if _hash(case['pmid']) % 4 == fold]
    train = [case for case in train if _hash(case['pmid']) % 4 != fold]
    held_out = _capped(sorted(held_out, key=lambda case: _hash(case['case_id'])))
  known = {case['gene'] for case in train}
  held_out = [case for case in held_out if case['gene'] in known]
  frequency = collections.Counter(finding for case in train for finding in finding_lines(case))
  return Cases(genes, sorted(f for f, count in frequency.items() if count >= 2), train, held_out)


def finding_lines(case: dict) -> list[str]:
  """Returns the findings of a case as lines of a prompt."""
  return [f'+ {name}' for name in case['present']] + [
    f'- {name}' for name in case['absent'][:MAX_ABSENT]
  ]


def _capped(cases):
  counts, selected = collections.Counter(), []
  for case in cases:
    counts[case['gene']] += 1
    if counts[case['gene']] <= MAX_ROWS_PER_GENE:
      selected.append(case)
  return selected


def _hash(text):
  return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


# --- naive Bayes ----------------------------------------------------------------------------------
class NaiveBayes:
  """Naive Bayes over genes, from the frequency of the findings in their train cases.

  log P(gene) + sum over '+' of log((n_gf + k b_f) / (n_g + k)) - log b_f + sum over '-' of
  log(1 - n_gf / (n_g + k)), with k = 2, b_f the fraction of all cases with f, and a prior of
  (n_g + 1) ** 0.3.
  """

  def __init__(self, genes, cases):
    self.genes = genes
    self._row = {gene: row for row, gene in enumerate(genes)}
    names = sorted({name for case in cases for name in case['present']})
    self._column = {name: column for column, name in enumerate(names)}
    self._counts, self._cases = self._count(cases)
    publications = collections.defaultdict(list)
    for case in cases:
      publications[case['pmid']].append(case)
    self._publications = publications

  def without(self, publication: str) -> 'NaiveBayes':
    """Returns the same fit without the cases of one publication."""
    other = object.__new__(NaiveBayes)
    other.__dict__.update(self.__dict__)
    counts, cases = self._count(self._publications[publication])
    other._counts, other._cases = self._counts - counts, self._cases - cases
    return other

  def ranking(self, findings: list[str], *, absent: bool) -> list[str]:
    """Returns all genes, the most likely first, for findings as lines of a prompt."""
    scores = self.scores(findings, absent=absent)
    return [self.genes[row] for row in np.argsort(-scores, kind='stable')]

  def scores(self, findings, *, absent):
    k, total = 2.0, self._cases.sum()
    scores = 0.3 * np.log(self._cases + 1)
    for finding in findings:
      column = self._column.get(finding[2:])
      counts = 0.0 if column is None else self._counts[:, column]
      if finding[0] == '+':
        background = (np.sum(counts) + 0.5) / (total + 1)
        scores = scores + np.log((counts + k * background) / (self._cases + k) / background)
      elif absent:
        scores = scores + np.log(1 - counts / (self._cases + k))
    return np.where(self._cases > 0, scores, -np.inf)

  def _count(self, cases):
    counts = np.zeros((len(self.genes), len(self._column)))
    number = np.zeros(len(self.genes))
    for case in cases:
      row = self._row[case['gene']]
      number[row] += 1
      for name in case['present']:
        counts[row, self._column[name]] += 1
    return counts, number


# --- rows -----------------------------------------------------------------------------------------
def prompt(findings: list[str]) -> list[dict[str, str]]:
  return [{'role': 'user', 'content': '\n'.join([*findings, ASK])}]


def solution(genes: list[str]) -> str:
  return OPENING + '", "'.join(genes) + '"]}'


def held_out_rows(task: Cases, bayes: NaiveBayes) -> list[dict[str, Any]]:
  """Returns the validation rows; their 'solution' is the answer of naive Bayes, not a target."""
  known = set(task.findings)
  rows = []
  for case in task.held_out:
    findings = [finding for finding in finding_lines(case) if finding in known]
    rows.append(
      {
        'messages': prompt(findings),
        'gene': case['gene'],
        'case_id': case['case_id'],
        'pmid': case['pmid'],
        'solution': solution(bayes.ranking(findings, absent=False)[:RANKS]),
      }
    )
  return rows


def train_rows(
  task: Cases, bayes: NaiveBayes, *, count: int, seed: int, few: bool = False
) -> list[dict[str, Any]]:
  """Returns about `count` copies of train cases in random order, none equal to a held-out row."""
  rng = np.random.default_rng(seed)
  known = set(task.findings)
  numbers = collections.Counter(case['gene'] for case in task.train)
  weights = np.array([numbers[case['gene']] ** -0.5 for case in task.train])
  copies = rng.choice(len(task.train), size=count, p=weights / weights.sum())
  held_out = {frozenset(finding_lines(case)) & known for case in task.held_out}
  bayes_without = {case['pmid']: bayes.without(case['pmid']) for case in task.train}
  rows = []
  for index in copies.tolist():
    case = task.train[index]
    findings = [finding for finding in finding_lines(case) if finding in known]
    findings = _few_findings(findings, rng) if few else _drop_findings(findings, rng)
    if frozenset(findings) in held_out:
      continue
    ranking = bayes_without[case['pmid']].ranking(findings, absent=False)
    others = [gene for gene in ranking if gene != case['gene']]
    rows.append(
      {
        'messages': prompt(findings),
        'gene': case['gene'],
        'case_id': case['case_id'],
        'solution': solution([case['gene'], *others[: RANKS - 1]]),
      }
    )
  return rows


def _drop_findings(findings, rng):
  """Returns a random subset of the findings in random order, with at least two if there are two."""
  shuffled = [findings[i] for i in rng.permutation(len(findings))]
  mask = rng.random(len(shuffled)) >= rng.choice(DROP_PROBABILITIES)
  mask[:2] = True
  return [finding for finding, keep in zip(shuffled, mask) if keep][:MAX_COPIED_FINDINGS]


def _few_findings(findings, rng):
  """Returns FEW_FINDINGS of the findings, in random order."""
  low, high = FEW_FINDINGS
  return [findings[i] for i in rng.permutation(len(findings))[: rng.integers(low, high + 1)]]


# --- base checkpoint ------------------------------------------------------------------------------
def make_tokenizer(task: Cases):
  """Returns a tokenizer with one token per finding and per gene.

  The token of a gene includes the punctuation after it, that of a finding its newline; any other
  text is encoded as bytes. ChatML, as in rft_jax.tasks.base_checkpoint.
  """
  import tokenizers
  import transformers

  from rft_jax.tasks import base_checkpoint as base

  split = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r'\{"explanation": "[^"]*", "genes": \["|[^\s"]+"(?:, "|\]\})|[^\n]*\n'),
        'isolated',
      ),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  texts = [f'{finding}\n' for finding in task.findings]
  texts += [f'{gene}{suffix}' for gene in task.genes for suffix in ('", "', '"]}')]
  texts += [ASK, OPENING, 'user\n', 'assistant\n', '\n']
  special = [base.END_OF_TEXT, base.START, base.END]
  byte_tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  pieces = [piece for text in texts for piece, _ in split.pre_tokenize_str(text)]
  tokens = list(dict.fromkeys(special + byte_tokens + pieces))
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True
    )
  )
  backend.pre_tokenizer = split
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(special)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token=base.END,
    pad_token=base.END_OF_TEXT,
    chat_template=base.TEMPLATE,
    clean_up_tokenization_spaces=False,
  )


def log_frequency_ratios(task: Cases) -> np.ndarray:
  """Returns f64[findings, genes], the log frequency ratio of a finding in the cases of a gene.

  log((n_gf + k b_f) / (n_g + k) / b_f) nats with k = 2; '+' and '-' are separate findings.
  """
  k, column = 2.0, {finding: i for i, finding in enumerate(task.findings)}
  counts, cases = np.zeros((len(task.findings), len(task.genes))), np.zeros(len(task.genes))
  for case in task.train:
    gene = task.genes.index(case['gene'])
    cases[gene] += 1
    for finding in set(finding_lines(case)) & column.keys():
      counts[column[finding], gene] += 1
  background = (counts.sum(1, keepdims=True) + 0.5) / (cases.sum() + 1)
  return np.log((counts + k * background) / (cases + k) / background)


def save_base(task: Cases, to: pathlib.Path, *, dim: int, layers: int, seed: int):
  """Writes a Llama with that tokenizer as an HF directory; returns its number of parameters.

  Random, except: the embeddings of findings and genes are the factors of `log_frequency_ratios`
  (truncated singular value decomposition), and a multiple of the identity is added to the value and
  output projections, so that attention starts as a sum of log ratios. The warm-up then starts from
  the association of findings and genes.
  """
  import jax
  import jax.numpy as jnp

  from rft_jax import hf, models

  tokenizer = make_tokenizer(task)
  config = models.DecoderConfig(
    vocab_size=len(tokenizer),
    dim=dim,
    layers=layers,
    heads=4,
    kv_heads=4,
    head_dim=dim // 4,
    mlp_dim=2 * dim,
    tied_head=True,
    max_positions=256,
    eos_ids=(tokenizer.eos_token_id,),
    pad_id=tokenizer.pad_token_id,
    valid_vocab=len(tokenizer),
  )
  model = models.make(config, seed=seed)
  left, sizes, right = np.linalg.svd(log_frequency_ratios(task), full_matrices=False)
  roots = np.sqrt(sizes[:dim])
  embed = np.array(model.embed[...])
  embed = _add_vectors(
    embed, tokenizer, [f'{finding}\n' for finding in task.findings], left[:, :dim] * roots
  )
  for suffix in ('", "', '"]}'):
    texts = [gene + suffix for gene in task.genes]
    embed = _add_vectors(embed, tokenizer, texts, right[:dim].T * roots)
  model.embed[...] = jnp.asarray(embed)
  eye = jnp.broadcast_to(jnp.eye(dim), (layers, dim, dim))
  attention = model.blocks.attention
  attention.v.kernel[...] = eye + attention.v.kernel[...]
  attention.o.kernel[...] = 0.2 * eye + attention.o.kernel[...]
  hf.save_base(model, config, tokenizer, to, force=True)
  return sum(leaf.size for leaf in jax.tree.leaves(model))


def _add_vectors(embed, tokenizer, texts, vectors):
  """Returns embed plus the vectors, scaled to its std, at the tokens of the texts."""
  embed = embed.copy()
  ids = [ids[0] for ids in tokenizer(texts, add_special_tokens=False)['input_ids']]
  scale = embed.std() / np.sqrt(np.mean(np.square(vectors)))
  embed[ids, : vectors.shape[1]] += scale * vectors
  return embed


# --- the command ----------------------------------------------------------------------------------
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('cases', type=pathlib.Path, help='directory with cases.jsonl.gz')
  parser.add_argument('--to', type=pathlib.Path, required=True, help='directory to write into')
  parser.add_argument('--cases_per_gene', type=int, default=12)
  parser.add_argument(
    '--fold',
    type=int,
    choices=range(4),
    help='hold out this quarter of the train publications instead of valid',
  )
  parser.add_argument('--copies', type=int, default=45_000, help='rows of train.jsonl')
  parser.add_argument('--few_copies', type=int, default=10_000, help='rows of train_few.jsonl')
  parser.add_argument('--dim', type=int, default=128)
  parser.add_argument('--layers', type=int, default=1)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  try:
    train, held_out = read(args.cases)
  except FileNotFoundError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
  task = select(train, held_out, cases_per_gene=args.cases_per_gene, fold=args.fold)
  bayes = NaiveBayes(task.genes, task.train)
  args.to.mkdir(parents=True, exist_ok=True)
  _write(args.to / 'train.jsonl', train_rows(task, bayes, count=args.copies, seed=args.seed))
  _write(
    args.to / 'train_few.jsonl',
    train_rows(task, bayes, count=args.few_copies, seed=args.seed + 1, few=True),
  )
  _write(args.to / 'valid.jsonl', held_out_rows(task, bayes))
  for name, absent in (('naive_bayes', True), ('naive_bayes_present', False)):
    _write(
      args.to / f'{name}.jsonl',
      [
        {
          'case_id': case['case_id'],
          'gene': case['gene'],
          'genes': bayes.ranking(finding_lines(case), absent=absent)[:RANKS],
        }
        for case in task.held_out
      ],
    )
  size = save_base(task, args.to / 'base', dim=args.dim, layers=args.layers, seed=args.seed)
  print(
    f'{len(task.genes)} genes, {len(task.findings)} findings, {len(task.train)} train cases, '
    f'{len(task.held_out)} held-out rows, {size:,} parameters -> {args.to}'
  )


def _write(path, rows):
  atomic.write_text(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


if __name__ == '__main__':
  main()
