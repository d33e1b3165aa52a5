"""Validation of rows against each other: missing fields, duplicates, leaked answers."""

from row_files import row


def test_a_nested_field_is_looked_up(load_error):
  train = [row('a', ref={'genes': [{'name': 'A'}]}), row('b', ref={'genes': []})]
  text = load_error(train, item_fields=frozenset({'ref.genes[0].name'}))
  assert 'train.jsonl line 2: E_ITEM_FIELD_MISSING: item.ref.genes[0].name' in text


def test_a_repeated_prompt_in_one_or_both_files_is_a_warning(load):  # R7
  repeated = {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'a case'}]}]}
  _, _, warnings = load([row('a case'), row('b'), repeated], [row('a case ')])
  assert len(warnings) == 2
  assert 'train.jsonl line 3: W_DUPLICATE_PROMPT: the same prompt as line 1' in warnings[0]
  assert 'valid.jsonl line 1: W_TRAIN_VAL_OVERLAP: the same prompt as train.jsonl:1' in warnings[1]


def test_an_answer_in_its_prompt_and_a_dominant_answer_are_warnings(load):
  train = [row(f'case {i}', gene='STXBP1' if i else 'NF1') for i in range(30)]
  train.append(row('Is it STXBP1?', gene='STXBP1'))
  _, _, warnings = load(train, [row('v', gene='NF1')], item_fields=frozenset({'gene'}))
  assert len(warnings) == 2
  assert 'train.jsonl line 31: W_ANSWER_LEAK' in warnings[0]
  assert 'W_LABEL_SKEW: item.gene: "STXBP1" in 30 of 31 rows' in warnings[1]
