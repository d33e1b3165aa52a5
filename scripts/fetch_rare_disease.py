#!/usr/bin/env python3
"""Converts a clone of monarch-initiative/phenopacket-store to rows of real rare-disease cases.

    git clone --depth 1 <phenopacket-store on GitHub> phenopacket-store
    python scripts/fetch_rare_disease.py phenopacket-store --to=data/rare_disease

Each phenopacket is one curated published case: age, sex, present and absent findings, and the
causal gene. This script reads the clone (it downloads nothing, and needs only the standard library)
and writes, under --to,

    pmid_split/{train,valid,test}.jsonl  no publication in two parts; genes recur: can be learned
    gene_split/{train,valid,test}.jsonl  no gene, disease or publication in two parts
    cases.jsonl.gz                       all train and valid cases of pmid_split (without --cap),
                                         with findings, for scripts/prepare_rare_disease.py
    stats.json                           counts, and the number of dropped cases by reason

A prompt has sex, ages and findings only: no disease, variant, gene, publication or cohort; a case
with its gene's symbol in a finding is dropped. All choices (part, cap, order) are hashes of
identifiers, so that the same clone gives the same files, and a case stays in its part when others
are added to the store. (In gene_split it can move: a new case may link two groups into one.)
Licence of the store: BSD 3-Clause, keep its notice with copies of the rows; findings are terms of
the Human Phenotype Ontology.
"""

import argparse
import collections
import gzip
import hashlib
import json
import pathlib
import re
import sys
from typing import NamedTuple

PARTS = (('train', 0.8), ('valid', 0.9), ('test', 1.0))  # upper ends of the hash
MAX_ABSENT = 30  # absent findings in a prompt; longer lists would hide the present ones
QUESTION = (
  'Which gene causes this monogenic disease? Rank up to 10 human genes by HGNC symbol, '
  'the most likely first. Reply with JSON alone: {"explanation": "<why, in short>", '
  '"genes": ["<symbol>", ...]}'
)


class Case(NamedTuple):
  """One usable phenopacket. A prompt uses only sex, age, onset, deceased, present and absent."""

  name: str
  gene: str
  disease: str
  disease_id: str
  pmid: str
  sex: str  # male, female or ''
  age: str  # at the last encounter, in words, or ''
  onset: str
  deceased: bool
  present: dict[str, str]  # HPO id to term
  absent: dict[str, str]


def fraction(*parts: str) -> float:
  """Returns a number in [0, 1) that depends on the parts alone."""
  digest = hashlib.sha256('\n'.join(parts).encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


# --- reading --------------------------------------------------------------------------------------
def time_in_words(element: dict | None) -> str:
  """Returns a phenopacket TimeElement in words, such as '3 years 2 months', or ''."""
  element = element or {}
  if 'ontologyClass' in element:
    return re.sub(' onset$', '', element['ontologyClass'].get('label', '').lower())
  if 'gestationalAge' in element:
    return f'{element["gestationalAge"].get("weeks", 0)} weeks of gestation'
  duration = element.get('age', {}).get('iso8601duration', '')
  numbers = re.findall(r'(\d+)([YMWD])', duration.partition('T')[0])
  if not numbers:
    return ''
  units = {'Y': 'year', 'M': 'month', 'W': 'week', 'D': 'day'}
  words = [f'{int(n)} {units[u]}{"s" if int(n) > 1 else ""}' for n, u in numbers if int(n)]
  return ' '.join(words) or 'birth'


def read_case(packet: dict, minimum: int) -> Case | str:
  """Returns the case, or the reason why it cannot be used."""
  try:
    diagnosis = packet['interpretations'][0]['diagnosis']
    disease_id, disease = diagnosis['disease']['id'], diagnosis['disease']['label'].strip()
    references = [r['id'] for r in packet['metaData']['externalReferences']]
    name = packet['id']
  except (KeyError, IndexError, TypeError):
    return 'no diagnosis, disease, publication or id'
  symbols = {
    interpretation.get('variantInterpretation', {})
    .get('variationDescriptor', {})
    .get('geneContext', {})
    .get('symbol')
    for interpretation in diagnosis.get('genomicInterpretations', [])
  } - {None, ''}
  pmids = [r for r in references if r.upper().startswith('PMID:')]
  if len(symbols) != 1:
    return 'not exactly one causal gene'
  if not pmids:
    return 'no PMID'
  present, excluded = {}, {}
  for feature in packet.get('phenotypicFeatures', []):
    labels = excluded if feature.get('excluded') else present
    labels[feature['type']['id']] = feature['type']['label'].strip()
  absent = {term: label for term, label in excluded.items() if term not in present}
  if len(present) < minimum:
    return f'fewer than {minimum} findings present'
  gene = symbols.pop()
  word = re.compile(rf'(?<![A-Za-z0-9]){re.escape(gene)}(?![A-Za-z0-9])', re.IGNORECASE)
  if any(word.search(label) for label in (*present.values(), *absent.values())):
    return 'a finding names the gene'
  subject = packet.get('subject', {})
  sex = subject.get('sex', '').lower()
  diseases = packet.get('diseases') or [{}]
  return Case(
    name,
    gene,
    disease,
    disease_id,
    pmids[0].upper(),
    sex if sex in ('male', 'female') else '',
    time_in_words(subject.get('timeAtLastEncounter')),
    time_in_words(diseases[0].get('onset')),
    subject.get('vitalStatus', {}).get('status') == 'DECEASED',
    present,
    absent,
  )


def read_store(store: pathlib.Path, minimum: int) -> tuple[list[Case], collections.Counter]:
  """Returns the usable cases without duplicates, and the number of dropped ones by reason."""
  paths = sorted(store.glob('notebooks/*/phenopackets/*.json'))
  if not paths:
    raise SystemExit(
      f'{store}: no files notebooks/*/phenopackets/*.json. Expected a clone of the '
      'GitHub repository monarch-initiative/phenopacket-store'
    )
  cases, dropped, keys = [], collections.Counter(), set()
  for path in paths:
    try:
      packet = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise SystemExit(f'{path}: not JSON ({error}). Check that the clone is complete') from error
    case = read_case(packet, minimum)
    if isinstance(case, str):
      dropped[case] += 1
      continue
    key = (case.gene, case.sex, case.age, frozenset(case.present))
    if key in keys:
      dropped['same gene, sex, age and findings as another'] += 1
      continue
    keys.add(key)
    cases.append(case)
  return cases, dropped


# --- splitting ------------------------------------------------------------------------------------
def linked_groups(cases: list[Case], fields: tuple[str, ...]) -> dict[str, list[Case]]:
  """Returns groups of cases; two cases with the same value in any of the fields share a group.

  The name of a group is the smallest value of its first field.
  """
  parent = {}

  def root(node):
    while parent.setdefault(node, node) != node:
      parent[node] = node = parent[parent[node]]
    return node

  for case in cases:
    nodes = [(field, getattr(case, field)) for field in fields]
    for node in nodes[1:]:
      parent[root(node)] = root(nodes[0])
  groups = collections.defaultdict(list)
  for case in cases:
    groups[root((fields[0], getattr(case, fields[0])))].append(case)
  return {min(getattr(c, fields[0]) for c in group): group for group in groups.values()}


def split(cases: list[Case], name: str, fields: tuple[str, ...]) -> dict[str, list[Case]]:
  """Returns part -> cases; all cases of a linked group are in the same part."""
  parts = {part: [] for part, _ in PARTS}
  for group_name, group in linked_groups(cases, fields).items():
    position = fraction(name, group_name)
    parts[next(part for part, end in PARTS if position < end)] += group
  # One patient may be in two papers: drop cases with the gene and findings of a training case.
  train_keys = {(case.gene, frozenset(case.present)) for case in parts['train']}
  for part in ('valid', 'test'):
    parts[part] = [c for c in parts[part] if (c.gene, frozenset(c.present)) not in train_keys]
  return parts


def capped(cases: list[Case], name: str, cap: int) -> list[Case]:
  """Returns at most `cap` cases per gene, in pseudo-random order."""
  counts, selected = collections.Counter(), []
  for case in sorted(cases, key=lambda c: fraction(name, 'order', c.name)):
    if counts[case.gene] < cap:
      counts[case.gene] += 1
      selected.append(case)
  return selected


# --- writing --------------------------------------------------------------------------------------
def prompt(case: Case) -> str:
  """Returns the case as a question, with at most MAX_ABSENT of the absent findings."""
  absent = sorted(case.absent, key=lambda term: fraction('absent', case.name, term))[:MAX_ABSENT]
  absent_labels = [label for term, label in case.absent.items() if term in absent]
  lines = [
    f'Patient: {case.sex or "sex not given"}, {case.age or "age not given"}'
    f'{", deceased" if case.deceased else ""}.',
    f'Onset: {case.onset or "not given"}.',
    f'Findings: {"; ".join(case.present.values())}.',
    f'Not found: {"; ".join(absent_labels) or "nothing reported"}.',
    '',
    QUESTION,
  ]
  return '\n'.join(lines)


def row(case: Case) -> dict:
  return {
    'messages': [{'role': 'user', 'content': prompt(case)}],
    'gene': case.gene,
    'disease': case.disease,
    'disease_id': case.disease_id,
    'pmid': case.pmid,
    'case_id': case.name,
  }


def write_cases(path: pathlib.Path, parts: dict[str, list[Case]]) -> None:
  """Writes all cases of train and valid with their findings, without the cap; none of test."""
  lines = [
    json.dumps(
      {
        'case_id': case.name,
        'pmid': case.pmid,
        'gene': case.gene,
        'present': list(case.present.values()),
        'absent': list(case.absent.values()),
        'pmid_split': part,
      },
      ensure_ascii=False,
    )
    + '\n'
    for part in ('train', 'valid')
    for case in parts[part]
  ]
  path.write_bytes(gzip.compress(''.join(lines).encode(), mtime=0))


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('store', type=pathlib.Path, help='the clone of phenopacket-store')
  parser.add_argument('--to', type=pathlib.Path, required=True, help='directory to write into')
  parser.add_argument('--cap', type=int, default=12, help='cases per gene and part (%(default)s)')
  parser.add_argument(
    '--minimum', type=int, default=3, help='present findings of a case (%(default)s)'
  )
  args = parser.parse_args(arguments)
  cases, dropped = read_store(args.store, args.minimum)
  stats = {'cases': len(cases), 'dropped': dict(dropped), 'cap': args.cap}
  for name, fields in (('pmid_split', ('pmid',)), ('gene_split', ('gene', 'disease_id', 'pmid'))):
    (args.to / name).mkdir(parents=True, exist_ok=True)
    parts = split(cases, name, fields)
    if name == 'pmid_split':
      write_cases(args.to / 'cases.jsonl.gz', parts)
    for part, part_cases in parts.items():
      selected = capped(part_cases, name, args.cap)
      text = ''.join(json.dumps(row(case), ensure_ascii=False) + '\n' for case in selected)
      (args.to / name / f'{part}.jsonl').write_text(text, encoding='utf-8')
      stats[f'{name}/{part}'] = {
        'rows': len(selected),
        'genes': len({c.gene for c in selected}),
        'publications': len({c.pmid for c in selected}),
      }
  (args.to / 'stats.json').write_text(json.dumps(stats, indent=2) + '\n', encoding='utf-8')
  print(json.dumps(stats, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())
