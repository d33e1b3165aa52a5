#!/usr/bin/env python3
"""Real rare-disease cases as RFT rows, from a clone of monarch-initiative/phenopacket-store.

    git clone --depth 1 <phenopacket-store on GitHub> phenopacket-store
    python scripts/fetch_rare_disease.py phenopacket-store --to=data/rare_disease

Each phenopacket there is one published case, curated: age, sex, findings that are there and that
are not, and the gene that caused them. This script reads the clone (it downloads nothing, and
needs the standard library alone) and writes, under --to,

    pmid_split/{train,valid,test}.jsonl  no publication in two parts; genes recur: can be learned
    gene_split/{train,valid,test}.jsonl  no gene, disease or publication in two parts
    cases.jsonl.gz                       pmid_split's train and valid cases, all of each gene, with
                                         their findings listed: for scripts/prepare_rare_disease.py
    stats.json                           counts, and what was dropped for which reason

A prompt shows sex, ages and findings only: no disease, variant, gene, publication or cohort, and
a case with its gene's symbol in a finding is dropped. All choices (part, cap, order) are made
by hashing identifiers, so that the same clone gives the same files, and a case does not
change its part when others are added to the store. (In gene_split it can: two groups that
a new case links become one.) Licence of the store: BSD 3-Clause, keep its notice with
copies of the rows; findings are terms of the Human Phenotype Ontology.
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
SHOWN_ABSENT = 30  # at most; long lists of what was not found drown the case
QUESTION = (
  'Which gene causes this monogenic disease? Rank up to 10 human genes by HGNC symbol, '
  'the most likely first. Reply with JSON alone: {"explanation": "<why, in short>", '
  '"genes": ["<symbol>", ...]}'
)


class Case(NamedTuple):
  """One usable phenopacket. Only sex, age, onset, deceased, present and absent reach a prompt."""

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


# --- reading -------------------------------------------------------------------------------------
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
  """Returns the case, or in one phrase why it cannot be used."""
  try:
    diagnosis = packet['interpretations'][0]['diagnosis']
    disease_id, disease = diagnosis['disease']['id'], diagnosis['disease']['label'].strip()
    references = [r['id'] for r in packet['metaData']['externalReferences']]
    name = packet['id']
  except (KeyError, IndexError, TypeError):
    return 'no diagnosis, disease, publication or id'
  symbols = {
    found.get('variantInterpretation', {})
    .get('variationDescriptor', {})
    .get('geneContext', {})
    .get('symbol')
    for found in diagnosis.get('genomicInterpretations', [])
  } - {None, ''}
  pmids = [r for r in references if r.upper().startswith('PMID:')]
  if len(symbols) != 1:
    return 'not exactly one causal gene'
  if not pmids:
    return 'no PMID'
  noted = {True: {}, False: {}}
  for feature in packet.get('phenotypicFeatures', []):
    noted[bool(feature.get('excluded'))][feature['type']['id']] = feature['type']['label'].strip()
  present = noted[False]
  absent = {term: label for term, label in noted[True].items() if term not in present}
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
  """Returns the usable cases without repeats, and a count of what was dropped, by reason."""
  paths = sorted(store.glob('notebooks/*/phenopackets/*.json'))
  if not paths:
    raise SystemExit(
      f'{store}: no notebooks/*/phenopackets/*.json here. Expected a clone of the '
      'GitHub repository monarch-initiative/phenopacket-store'
    )
  cases, dropped, seen = [], collections.Counter(), set()
  for path in paths:
    try:
      packet = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise SystemExit(f'{path}: not JSON ({error}). Check that the clone is complete')
    case = read_case(packet, minimum)
    if isinstance(case, str):
      dropped[case] += 1
      continue
    key = (case.gene, case.sex, case.age, frozenset(case.present))
    if key in seen:
      dropped['same gene, sex, age and findings as another'] += 1
      continue
    seen.add(key)
    cases.append(case)
  return cases, dropped


# --- splitting -----------------------------------------------------------------------------------
def linked_groups(cases: list[Case], fields: tuple[str, ...]) -> dict[str, list[Case]]:
  """Returns groups such that two cases that agree in any of the fields are in one group.

  A group is named by the smallest value of its first field.
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
  """Returns part -> cases; a group of linked cases falls into one part as a whole."""
  parts = {part: [] for part, _ in PARTS}
  for group_name, group in linked_groups(cases, fields).items():
    at = fraction(name, group_name)
    parts[next(part for part, end in PARTS if at < end)] += group
  # The same patient may be in two papers: no case with the gene and findings of a trained one.
  trained = {(case.gene, frozenset(case.present)) for case in parts['train']}
  for part in ('valid', 'test'):
    parts[part] = [c for c in parts[part] if (c.gene, frozenset(c.present)) not in trained]
  return parts


def capped(cases: list[Case], name: str, cap: int) -> list[Case]:
  """Returns at most cap cases a gene, in an order without meaning."""
  taken, kept = collections.Counter(), []
  for case in sorted(cases, key=lambda c: fraction(name, 'order', c.name)):
    if taken[case.gene] < cap:
      taken[case.gene] += 1
      kept.append(case)
  return kept


# --- writing -------------------------------------------------------------------------------------
def prompt(case: Case) -> str:
  """Returns the case as a question. Of the absent findings at most SHOWN_ABSENT are told."""
  absent = sorted(case.absent, key=lambda term: fraction('absent', case.name, term))[:SHOWN_ABSENT]
  shown = [label for term, label in case.absent.items() if term in absent]
  lines = [
    f'Patient: {case.sex or "sex not given"}, {case.age or "age not given"}'
    f'{", deceased" if case.deceased else ""}.',
    f'Onset: {case.onset or "not given"}.',
    f'Findings: {"; ".join(case.present.values())}.',
    f'Not found: {"; ".join(shown) or "nothing reported"}.',
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
  """Writes the cases of train and valid with their findings, none left out, none of test."""
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
  parser.add_argument('--cap', type=int, default=12, help='cases a gene and part (%(default)s)')
  parser.add_argument('--minimum', type=int, default=3, help='findings present (%(default)s)')
  given = parser.parse_args(arguments)
  cases, dropped = read_store(given.store, given.minimum)
  stats = {'cases': len(cases), 'dropped': dict(dropped), 'cap': given.cap}
  for name, fields in (('pmid_split', ('pmid',)), ('gene_split', ('gene', 'disease_id', 'pmid'))):
    (given.to / name).mkdir(parents=True, exist_ok=True)
    parts = split(cases, name, fields)
    if name == 'pmid_split':
      write_cases(given.to / 'cases.jsonl.gz', parts)
    for part, slot_assignment in parts.items():
      kept = capped(slot_assignment, name, given.cap)
      text = ''.join(json.dumps(row(case), ensure_ascii=False) + '\n' for case in kept)
      (given.to / name / f'{part}.jsonl').write_text(text, encoding='utf-8')
      stats[f'{name}/{part}'] = {
        'rows': len(kept),
        'genes': len({c.gene for c in kept}),
        'publications': len({c.pmid for c in kept}),
      }
  (given.to / 'stats.json').write_text(json.dumps(stats, indent=2) + '\n', encoding='utf-8')
  print(json.dumps(stats, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())
