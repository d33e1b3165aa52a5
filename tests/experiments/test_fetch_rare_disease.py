"""scripts/fetch_rare_disease.py on a synthetic phenopacket store."""

import importlib.util
import json

import pytest
from paths import ROOT

PATH = ROOT / 'scripts' / 'fetch_rare_disease.py'


@pytest.fixture(scope='module')
def fetch():
  spec = importlib.util.spec_from_file_location('fetch_rare_disease', PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def packet(
  name='case',
  gene='ABC1',
  pmid='PMID:1',
  disease='OMIM:1',
  present=('a', 'b', 'c'),
  absent=('d',),
  **changes,
):
  """Returns a phenopacket in the format of the store, with the fields that are read."""
  features = [{'type': {'id': f'HP:{label}', 'label': label.title()}} for label in present]
  features += [
    {'type': {'id': f'HP:{label}', 'label': label.title()}, 'excluded': True} for label in absent
  ]
  return {
    'id': name,
    'subject': {
      'id': 'P1',
      'sex': 'FEMALE',
      'timeAtLastEncounter': {'age': {'iso8601duration': 'P3Y2M'}},
    },
    'phenotypicFeatures': features,
    'interpretations': [
      {
        'diagnosis': {
          'disease': {'id': disease, 'label': 'Secret syndrome 4'},
          'genomicInterpretations': [
            {
              'variantInterpretation': {
                'variationDescriptor': {
                  'geneContext': {'valueId': 'HGNC:1', 'symbol': gene},
                  'expressions': [{'value': 'NM_1:c.12A>G'}],
                }
              }
            }
          ],
        }
      }
    ],
    'diseases': [{'onset': {'ontologyClass': {'id': 'HP:1', 'label': 'Childhood onset'}}}],
    'metaData': {'externalReferences': [{'id': pmid, 'description': 'ABC1 in a family'}]},
  } | changes


def store(tmp_path, packets):
  for i, item in enumerate(packets):
    folder = tmp_path / 'store' / 'notebooks' / 'COHORT9' / 'phenopackets'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{i}.json').write_text(json.dumps(item), encoding='utf-8')
  return tmp_path / 'store'


def rows(folder):
  return {
    part: [json.loads(line) for line in (folder / f'{part}.jsonl').read_text().splitlines()]
    for part in ('train', 'valid', 'test')
  }


def test_three_cases_become_rows_in_both_splits(fetch, tmp_path):
  packets = [
    packet('one'),
    packet('two', gene='DEF2', pmid='PMID:2', disease='OMIM:2'),
    packet('three', gene='GHI3', pmid='PMID:3', disease='OMIM:3', absent=()),
  ]
  assert fetch.main([str(store(tmp_path, packets)), f'--to={tmp_path / "out"}']) == 0
  for name in ('pmid_split', 'gene_split'):
    all_rows = [row for part in rows(tmp_path / 'out' / name).values() for row in part]
    assert {row['case_id']: row['gene'] for row in all_rows} == {
      'one': 'ABC1',
      'two': 'DEF2',
      'three': 'GHI3',
    }
  text = next(row for row in all_rows if row['case_id'] == 'one')['messages'][0]['content']
  assert text.startswith(
    'Patient: female, 3 years 2 months.\nOnset: childhood.\nFindings: A; B; C.\nNot found: D.\n'
  )
  empty = next(row for row in all_rows if row['case_id'] == 'three')['messages'][0]['content']
  assert 'Not found: nothing reported.' in empty
  assert json.loads((tmp_path / 'out' / 'stats.json').read_text())['cases'] == 3


def test_prompt_leaks_neither_gene_disease_variant_publication_nor_cohort(fetch):
  text = fetch.prompt(fetch.read_case(packet(), 3))
  for secret in ('ABC1', 'syndrome', 'OMIM', 'PMID', 'c.12A>G', 'family', 'COHORT9'):
    assert secret not in text


@pytest.mark.parametrize(
  'changes, reason',
  [
    (dict(present=('a', 'b')), 'fewer than 3'),
    (dict(present=('a', 'b', 'loss of abc1 protein')), 'a finding names the gene'),
    (dict(gene=''), 'not exactly one causal gene'),
    (dict(pmid='DOI:10.1/2'), 'no PMID'),
    (dict(interpretations=[]), 'no diagnosis'),
  ],
)
def test_unusable_cases_have_a_reason(fetch, changes, reason):
  assert fetch.read_case(packet(**changes), 3).startswith(reason)


def test_a_finding_noted_both_ways_counts_as_present(fetch):
  case = fetch.read_case(packet(absent=('a', 'd')), 3)
  assert list(case.present.values()) == ['A', 'B', 'C'] and list(case.absent.values()) == ['D']


def test_duplicates_are_dropped(fetch, tmp_path):
  folder = store(tmp_path, [packet('one'), packet('two', pmid='PMID:2')])
  cases, dropped = fetch.read_store(folder, 3)
  assert [case.name for case in cases] == ['one']
  assert dropped == {'same gene, sex, age and findings as another': 1}


def many(fetch):
  """Returns 320 cases whose genes, publications and diseases are linked with each other."""
  packets = [
    packet(
      f'c{i}',
      gene=f'G{i * 7 % 40}',
      pmid=f'PMID:{i * 3 % 70}',
      disease=f'OMIM:{i * 7 % 40}',
      present=(f'x{i}', f'y{i}', f'z{i}'),
    )
    for i in range(200)
  ]
  packets += [
    packet(
      f'd{i}',
      gene=f'H{i}',
      pmid=f'PMID:9{i}',
      disease=f'OMIM:9{i // 2}',
      present=(f'u{i}', f'v{i}', f'w{i}'),
    )
    for i in range(120)
  ]
  return [fetch.read_case(item, 3) for item in packets]


def test_no_publication_is_in_two_parts_of_the_pmid_split(fetch):
  parts = fetch.split(many(fetch), 'pmid_split', ('pmid',))
  assert all(parts.values())
  pmids = [{case.pmid for case in part} for part in parts.values()]
  assert not (pmids[0] & pmids[1] or pmids[0] & pmids[2] or pmids[1] & pmids[2])


def test_no_gene_disease_or_publication_is_in_two_parts_of_the_gene_split(fetch):
  fields = ('gene', 'disease_id', 'pmid')
  parts = fetch.split(many(fetch), 'gene_split', fields)
  assert all(parts.values())
  for field in fields:
    values = [{getattr(case, field) for case in part} for part in parts.values()]
    assert not (values[0] & values[1] or values[0] & values[2] or values[1] & values[2])


def test_a_training_patient_in_a_second_paper_is_not_held_out(fetch):
  cases = [fetch.read_case(packet(f'c{i}', pmid=f'PMID:{i}'), 3) for i in range(60)]
  parts = fetch.split(cases, 'pmid_split', ('pmid',))
  assert len(parts['train']) > 30 and not parts['valid'] and not parts['test']


def test_cap_applies_to_each_gene(fetch):
  cases = fetch.capped(many(fetch), 'pmid_split', 2)
  counts = {case.gene: 0 for case in cases}
  for case in cases:
    counts[case.gene] += 1
  assert max(counts.values()) == 2 and len(counts) == 160


def test_a_long_list_of_absent_findings_is_cut_deterministically(fetch):
  case = fetch.read_case(packet(absent=[f'n{i:02}' for i in range(50)]), 3)
  line = fetch.prompt(case).split('\n')[3]
  labels = line.removeprefix('Not found: ').rstrip('.').split('; ')
  assert (
    len(labels) == 30 and labels == sorted(labels) and fetch.prompt(case).split('\n')[3] == line
  )


@pytest.mark.parametrize(
  'element, words',
  [
    ({'age': {'iso8601duration': 'P0D'}}, 'birth'),
    ({'age': {'iso8601duration': 'P1Y1M2W10D'}}, '1 year 1 month 2 weeks 10 days'),
    ({'age': {'iso8601duration': 'P2DT5M'}}, '2 days'),
    ({'gestationalAge': {'weeks': 22}}, '22 weeks of gestation'),
    ({'ontologyClass': {'label': 'Congenital onset'}}, 'congenital'),
    (None, ''),
  ],
)
def test_times_are_converted_to_words(fetch, element, words):
  assert fetch.time_in_words(element) == words


def test_a_folder_that_is_not_a_clone_is_an_error(fetch, tmp_path):
  with pytest.raises(SystemExit, match='phenopacket-store'):
    fetch.main([str(tmp_path), f'--to={tmp_path / "out"}'])
