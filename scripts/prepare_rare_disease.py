"""From real case reports to what configs/rare_disease_grpo.py trains on.

  python scripts/prepare_rare_disease.py CASES --to=runs/rare_disease

CASES holds cases.jsonl.gz and pmid_split/valid.jsonl, as scripts/fetch_rare_disease.py builds
them from a clone of the public phenopacket-store repository.

The rules, the same for every system that is compared:
- Genes: those with at least --cases_per_gene train cases of pmid_split. The held-out rows are
  those of pmid_split/valid.jsonl (at most 12 a gene) whose gene is one of these.
- A prompt lists coded findings alone, '+' present and '-' absent, at most 30 absent ones. A
  finding that fewer than two train cases show in that form is left out: nothing could be learnt.
- Naive Bayes is fitted on the same train cases, once with the absent findings and once without.

What is trained on are copies of the train cases with findings shuffled and dropped at random, so
that what a publication happens to list is not learnt by heart. A gene of n cases gets copies in
proportion to the square root of n. train.jsonl is for the warm-up; train_few.jsonl, for
reinforcement, shows two to six findings of a case, since a policy that has warmed up on a case
knows it by heart when it sees more: its samples are then all right, and teach nothing.

The warm-up's target is the true gene, then the nine best of the others by a naive Bayes that has
not seen the case's publication, read from the same prompt.
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
ABSENT_SHOWN = 30
COPIED_FINDINGS = 24  # at most so many in a training copy: a bound on its length
FEW_FINDINGS = (2, 6)  # in a copy for reinforcement: from, to
DROPPED = (0.2, 0.5, 0.8)  # a copy leaves out each finding with one of these probabilities
ROWS_PER_GENE = 12  # of a fold's held-out rows, as in valid.jsonl
ASK = 'Rank ten genes as JSON.\n'
OPENING = '{"explanation": "fit of the findings", "genes": ["'


class Cases(NamedTuple):
  """The narrowed task."""

  genes: list[str]
  findings: list[str]  # '+ Seizure', '- Ataxia': what a prompt may list
  train: list[dict[str, Any]]
  held_out: list[dict[str, Any]]


# --- the cases ------------------------------------------------------------------------------------
def read(directory: pathlib.Path) -> tuple[list[dict], list[dict]]:
  """Returns the train cases of pmid_split and those that valid.jsonl lists.

  The field 'title', which often names the gene, is dropped here.

  Raises:
    FileNotFoundError: says which file is missing and what makes it.
  """
  path, listed = directory / 'cases.jsonl.gz', directory / 'pmid_split' / 'valid.jsonl'
  for needed in (path, listed):
    if not needed.is_file():
      raise FileNotFoundError(
        f'{needed}: not there. Clone the public repository monarch-initiative/phenopacket-store '
        'and run scripts/fetch_rare_disease.py on it; give its output directory here'
      )
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    cases = [json.loads(line) for line in lines]
  for case in cases:
    case.pop('title', None)
  with open(listed, encoding='utf-8') as lines:
    chosen = {json.loads(line)['case_id'] for line in lines}
  return (
    [case for case in cases if case['pmid_split'] == 'train'],
    [case for case in cases if case['case_id'] in chosen],
  )


def narrow(
  train: list[dict], held_out: list[dict], *, cases_per_gene: int, fold: int | None
) -> Cases:
  """Returns the narrowed task; with a fold, of train alone.

  Args:
    fold: 0 to 3: the publications of train with that hash are held out instead, to choose
      settings without a look at the held-out rows.
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
  shown = collections.Counter(finding for case in train for finding in listed(case))
  return Cases(genes, sorted(f for f, count in shown.items() if count >= 2), train, held_out)


def listed(case: dict) -> list[str]:
  """Returns the findings of a case as lines of a prompt."""
  return [f'+ {name}' for name in case['present']] + [
    f'- {name}' for name in case['absent'][:ABSENT_SHOWN]
  ]


def _capped(cases):
  seen, kept = collections.Counter(), []
  for case in cases:
    seen[case['gene']] += 1
    if seen[case['gene']] <= ROWS_PER_GENE:
      kept.append(case)
  return kept


def _hash(text):
  return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


# --- naive Bayes ----------------------------------------------------------------------------------
class NaiveBayes:
  """Genes by how often their train cases show the findings.

  log P(gene) + sum over '+' of log((n_gf + k b_f) / (n_g + k)) - log b_f + sum over '-' of
  log(1 - n_gf / (n_g + k)), with k = 2, b_f the share of all cases that show f, and a prior of
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
    """Returns all genes, the likeliest first, given findings as lines of a prompt."""
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
  """Returns the rows to be measured on; their 'solution' is naive Bayes' answer, never learnt."""
  known = set(task.findings)
  rows = []
  for case in task.held_out:
    findings = [finding for finding in listed(case) if finding in known]
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
  """Returns about `count` training copies in random order, none with a held-out row's findings."""
  rng = np.random.default_rng(seed)
  known = set(task.findings)
  numbers = collections.Counter(case['gene'] for case in task.train)
  weights = np.array([numbers[case['gene']] ** -0.5 for case in task.train])
  copies = rng.choice(len(task.train), size=count, p=weights / weights.sum())
  held_out = {frozenset(listed(case)) & known for case in task.held_out}
  honest = {case['pmid']: bayes.without(case['pmid']) for case in task.train}
  rows = []
  for index in copies.tolist():
    case = task.train[index]
    findings = [finding for finding in listed(case) if finding in known]
    findings = _few(findings, rng) if few else _dropped(findings, rng)
    if frozenset(findings) in held_out:
      continue
    others = [
      gene for gene in honest[case['pmid']].ranking(findings, absent=False) if gene != case['gene']
    ]
    rows.append(
      {
        'messages': prompt(findings),
        'gene': case['gene'],
        'case_id': case['case_id'],
        'solution': solution([case['gene'], *others[: RANKS - 1]]),
      }
    )
  return rows


def _dropped(findings, rng):
  """Returns a shuffled part of the findings, two at least where there are two."""
  shuffled = [findings[i] for i in rng.permutation(len(findings))]
  kept = rng.random(len(shuffled)) >= rng.choice(DROPPED)
  kept[:2] = True
  return [finding for finding, keep in zip(shuffled, kept) if keep][:COPIED_FINDINGS]


def _few(findings, rng):
  """Returns some of the findings, in random order."""
  low, high = FEW_FINDINGS
  return [findings[i] for i in rng.permutation(len(findings))[: rng.integers(low, high + 1)]]


# --- the stand-in for a base checkpoint -----------------------------------------------------------
def make_tokenizer(task: Cases):
  """Returns a tokenizer with one token for each finding, line and all, and for each gene.

  A gene comes with the punctuation behind it, a finding with the end of its line; any other text
  is spelled in bytes. ChatML, as in rft_jax.tasks.base_checkpoint.
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
  texts += [f'{gene}{behind}' for gene in task.genes for behind in ('", "', '"]}')]
  texts += [ASK, OPENING, 'user\n', 'assistant\n', '\n']
  special = [base.END_OF_TEXT, base.START, base.END]
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  pieces = [piece for text in texts for piece, _ in split.pre_tokenize_str(text)]
  tokens = list(dict.fromkeys(special + letters + pieces))
  fast = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True
    )
  )
  fast.pre_tokenizer = split
  fast.decoder = tokenizers.decoders.ByteLevel()
  fast.add_special_tokens(special)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=fast,
    eos_token=base.END,
    pad_token=base.END_OF_TEXT,
    chat_template=base.TEMPLATE,
    clean_up_tokenization_spaces=False,
  )


def evidence(task: Cases) -> np.ndarray:
  """Returns f64[findings, genes] nats: how much oftener a gene's train cases show a finding.

  log((n_gf + k b_f) / (n_g + k) / b_f) with k = 2, '+' and '-' counted apart.
  """
  k, column = 2.0, {finding: i for i, finding in enumerate(task.findings)}
  counts, cases = np.zeros((len(task.findings), len(task.genes))), np.zeros(len(task.genes))
  for case in task.train:
    gene = task.genes.index(case['gene'])
    cases[gene] += 1
    for finding in set(listed(case)) & column.keys():
      counts[column[finding], gene] += 1
  background = (counts.sum(1, keepdims=True) + 0.5) / (cases.sum() + 1)
  return np.log((counts + k * background) / (cases + k) / background)


def save_base(task: Cases, to: pathlib.Path, *, dim: int, layers: int, seed: int):
  """Writes a Llama with that tokenizer as an HF directory; returns its number of parameters.

  Untrained but for the embeddings: those of findings and genes are the factors of `evidence`,
  the truncated singular value decomposition, and the value and output projections hold a
  multiple of the identity, so that attention begins as a sum of evidence. The warm-up need not
  find out from nothing which tokens belong together.
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
  left, sizes, right = np.linalg.svd(evidence(task), full_matrices=False)
  roots = np.sqrt(sizes[:dim])
  embed = np.array(model.embed[...])
  embed = _put(
    embed, tokenizer, [f'{finding}\n' for finding in task.findings], left[:, :dim] * roots
  )
  for behind in ('", "', '"]}'):
    embed = _put(embed, tokenizer, [gene + behind for gene in task.genes], right[:dim].T * roots)
  model.embed[...] = jnp.asarray(embed)
  eye = jnp.broadcast_to(jnp.eye(dim), (layers, dim, dim))
  attention = model.blocks.attention
  attention.v.kernel[...] = eye + attention.v.kernel[...]
  attention.o.kernel[...] = 0.2 * eye + attention.o.kernel[...]
  hf.save_base(model, config, tokenizer, to, force=True)
  return sum(leaf.size for leaf in jax.tree.leaves(model))


def _put(embed, tokenizer, texts, vectors):
  """Returns embed with the vectors, scaled to its own size, added at the tokens of the texts."""
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
  parser.add_argument('--to', type=pathlib.Path, required=True, help='where the files are written')
  parser.add_argument('--cases_per_gene', type=int, default=12)
  parser.add_argument(
    '--fold',
    type=int,
    choices=range(4),
    help='hold out this quarter of the train publications instead of valid',
  )
  parser.add_argument('--copies', type=int, default=45_000, help='training rows')
  parser.add_argument('--few_copies', type=int, default=10_000, help='rows for reinforcement')
  parser.add_argument('--dim', type=int, default=128)
  parser.add_argument('--layers', type=int, default=1)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  try:
    train, held_out = read(args.cases)
  except FileNotFoundError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
  task = narrow(train, held_out, cases_per_gene=args.cases_per_gene, fold=args.fold)
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
          'genes': bayes.ranking(listed(case), absent=absent)[:RANKS],
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
