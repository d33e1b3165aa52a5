"""Templates: golden renderings, faults that name the missing value, and template problems."""

import datetime
import json
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rft_jax.graders import template

ITEM = {
  'answer': 'BRCA2',
  'count': 3,
  'ratio': 1.5,
  'yes': True,
  'none': None,
  'genes': [{'name': 'naïve', 'ids': [1, 2]}, {'name': 'b'}],
  'ground-truth': {'date': '2024'},
  'messages': [{'role': 'user', 'content': 'a: "b"'}],
}
SAMPLE = {
  'output_text': ' x\n',
  'output_json': {'genes': ['A', 'B'], 'deep': {'k': [[7]]}},
  'output_tools': [{'function': {'name': 'look', 'arguments': '{"q": 1}'}}],
}


@pytest.mark.parametrize(
  'text, expected',
  [
    ('{{ item.answer }}', 'BRCA2'),
    ('{{item.answer}}', 'BRCA2'),
    ('{{item.answer }}, {{\n item.answer}}!', 'BRCA2, BRCA2!'),
    ('{{ sample.output_text }}', ' x\n'),
    ('{{ item.count }} {{ item.ratio }} {{ item.yes }} {{ item.none }}', '3 1.5 true null'),
    ('{{ item.genes }}', '[{"name":"naïve","ids":[1,2]},{"name":"b"}]'),
    ('{{ item.genes[0].ids[1] }}{{ item.genes[1].name }}', '2b'),
    ('{{ item.ground-truth.date }}', '2024'),
    ('{{ item.messages }}', '[{"role":"user","content":"a: \\"b\\""}]'),
    ('{{ sample.output_json.genes[1] }}', 'B'),
    ('{{ sample.output_json.deep.k[0][0] }}', '7'),
    ('{{ sample.output_json }}', '{"genes":["A","B"],"deep":{"k":[[7]]}}'),
    ('{{ sample.output_tools[0].function.name }}', 'look'),
    ('{{ sample.output_tools[0].function.arguments }}', '{"q": 1}'),
    ('{"a": {"b": {}}} { { }} }', '{"a": {"b": {}}} { { }} }'),
    ('{"gene":{{item.count}}}', '{"gene":3}'),
    ('{{{item.count}}}', '{3}'),
    ('', ''),
  ],
)
def test_golden_renderings(text, expected):
  assert template.problems(text) == []
  assert template.render(text, item=ITEM, sample=SAMPLE) == expected


def test_a_rendered_value_is_not_rendered_again():
  item = {'answer': '{{ sample.output_text }}'}
  assert template.render('{{ item.answer }}', item=item, sample={}) == '{{ sample.output_text }}'


@pytest.mark.parametrize(
  'text, words',
  [
    ('{{ reference.answer }}', ["'reference'", 'item or sample']),
    ('{{ smaple.output_text }}', ["did you mean 'sample'"]),
    ('{{ answer }}', ['{{ item.answer }}']),
    ('{{ item }}', ['names no field']),
    ('{{ item[0] }}', ['names no field']),
    ('{{ sample.output_txt }}', ["did you mean 'output_text'"]),
    ('{{ sample.output_text.gene }}', ['output_text is a string']),
    ('{{ item.a + 1 }}', ['not a reference']),
    ('{{ item.a|upper }}', ['not a reference']),
    ('{{ item["a"] }}', ['not a reference']),
    ('{{ item.a[-1] }}', ['not a reference']),
    ('{{ item.a[' + '1' * 5000 + '] }}', ['not a reference']),
    ('{{ item..a }}', ['not a reference']),
    ('{{}}', ['not a reference']),
    ('ab {{ item.a', ['character 4', 'not closed']),
    (7, ['need a string']),
  ],
)
def test_an_invalid_template_has_problems(text, words):
  problems = template.problems(text)
  assert len(problems) == 1
  assert all(word in problems[0] for word in words), problems


def test_two_problems_of_one_template_are_both_listed():
  problems = template.problems('{{ itme.a }} {{ item.fine }} {{ sample.text }}')
  assert len(problems) == 2 and 'itme' in problems[0] and "'text'" in problems[1]


@pytest.mark.parametrize(
  'text, is_policy_fault, key, words',
  [
    ('{{ item.answr }}', False, 'invalid_variable_error', ["did you mean 'answer'"]),
    ('{{ item.genes[2] }}', False, 'invalid_variable_error', ['genes has 2 elements']),
    ('{{ item.genes.name }}', False, 'invalid_variable_error', ['genes is an array']),
    ('{{ item.answer.x }}', False, 'invalid_variable_error', ['answer is a string']),
    ('{{ item.count[0] }}', False, 'invalid_variable_error', ['count is a number']),
    ('{{ sample.output_json.gene }}', True, 'invalid_variable_error', ["did you mean 'genes'"]),
    ('{{ sample.output_audio }}', True, 'invalid_variable_error', ['output_audio']),
  ],
)
def test_a_missing_value_is_a_fault_that_names_it(text, is_policy_fault, key, words):
  with pytest.raises(template.Fault) as caught:
    template.render(text, item=ITEM, sample=SAMPLE)
  errors = caught.value.errors
  assert caught.value.is_policy_fault is is_policy_fault
  assert set(errors) == {key, key + '_details'} and errors[key] is True
  assert all(word in errors[key + '_details'] for word in words), errors


def test_output_json_of_a_text_that_is_not_json_is_a_parse_error_of_the_policy():
  with pytest.raises(template.Fault) as caught:
    template.render('{{ sample.output_json.a }}', item={}, sample={'output_text': 'no'})
  assert caught.value.is_policy_fault and caught.value.errors['sample_parse_error'] is True


@pytest.mark.parametrize(
  'texts',
  [
    ['{{ sample.output_json }}{{ item.nowhere }}'],
    ['{{ sample.output_json }}', '{{ item.nowhere }}'],
  ],
)
def test_a_fault_of_the_row_has_priority_over_a_fault_of_the_answer(texts):
  with pytest.raises(template.Fault) as caught:
    template.render_all(texts, item={}, sample={})
  assert not caught.value.is_policy_fault


def test_fields_are_the_paths_of_item_that_are_read():
  text = '{{ item.a }}{{item.b.c[0].d}} {{ sample.output_json.z }} {{ item.a }}'
  assert template.fields(text) == {'a', 'b.c[0].d'}


def test_missing_fields_are_the_paths_that_a_row_lacks():
  reasons = template.missing_fields(
    ITEM, frozenset({'answer', 'genes[0].name', 'genes[0].nam', 'none.x'})
  )
  assert set(reasons) == {'genes[0].nam', 'none.x'}
  assert "did you mean 'name'" in reasons['genes[0].nam'] and 'none is null' in reasons['none.x']


def test_value_at_follows_a_path_of_a_row():
  assert template.value_at(ITEM, 'genes[0].ids[1]') == 2
  assert template.value_at(ITEM, 'ground-truth.date') == '2024'
  assert template.value_at(ITEM, 'none', 'default') is None
  for path in ('genes[7]', 'answer.x', 'answer[0]', 'count[0]', 'nowhere'):
    assert template.value_at(ITEM, path) is None
    assert template.value_at(ITEM, path, 'default') == 'default'


def nested(depth):
  value = []
  for _ in range(depth):
    value = [value]
  return value


@pytest.mark.parametrize(
  'text, is_policy_fault, key',
  [
    ('{{ item.value }}', False, 'other_error'),
    ('{{ sample.output_json }}', True, 'sample_parse_error'),
  ],
)
@pytest.mark.parametrize(
  'value', [[datetime.date(2024, 1, 1)], nested(100_000)], ids=['date', 'deep']
)
def test_a_value_without_json_is_a_fault_that_names_it(text, is_policy_fault, key, value):
  with pytest.raises(template.Fault) as caught:
    template.render(text, item={'value': value}, sample={'output_json': value})
  assert caught.value.is_policy_fault is is_policy_fault and caught.value.errors[key] is True
  assert text.strip('{} ') in caught.value.errors[key + '_details']


# --- properties of every value -------------------------------------------------------------------
NAMES = st.from_regex(r'[A-Za-z_][A-Za-z0-9_-]{0,5}', fullmatch=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, st.text(max_size=8))
VALUES = st.recursive(
  LEAVES,
  lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
  max_leaves=8,
)
# Texts that often contain the syntax of templates.
SYNTAX = st.one_of(
  st.sampled_from(
    [
      '{{',
      '}}',
      '{',
      '}',
      'item',
      'sample',
      '.',
      '[',
      '0',
      ']',
      ' ',
      '.output_text',
      '.output_json',
      '\n',
      '-',
    ]
  ),
  st.text(max_size=3),
)
TEMPLATES = st.lists(SYNTAX, max_size=12).map(''.join)


@given(st.text(st.characters()))
@example('{{ item.x }}')
@example('\ud800')
def test_a_string_is_inserted_verbatim(text):
  for path in ('{{ item.x }}', '{{ sample.output_text }}'):
    assert template.render(path, item={'x': text}, sample={'output_text': text}) == text


@given(VALUES)
def test_anything_else_is_its_json_without_spaces(value):
  assume(not isinstance(value, str))
  rendered = template.render('{{ item.x }}', item={'x': value}, sample={})
  assert json.loads(rendered) == value
  outside = re.sub(r'"(?:[^"\\]|\\.)*"', '', rendered)  # without the strings
  assert not re.search(r'\s', outside)
  scalars = {True: 'true', False: 'false', None: 'null'}
  if value is None or isinstance(value, bool):
    assert rendered == scalars[value]


@given(st.lists(st.text(st.characters(min_codepoint=0xA0, exclude_categories=['Cs'])), max_size=3))
def test_non_ascii_text_is_not_escaped_in_json(texts):
  rendered = template.render('{{ item.x }}', item={'x': texts}, sample={})
  assert rendered == '[' + ','.join(f'"{text}"' for text in texts) + ']'


@given(NAMES, VALUES, st.text(' \t\n', max_size=3), st.text(' \t\n', max_size=3))
def test_spaces_inside_the_braces_do_not_matter(name, value, before, after):
  spaced = '{{' + before + 'item.' + name + after + '}}'
  assert template.problems(spaced) == []
  assert template.render(spaced, item={name: value}, sample={}) == template.render(
    '{{item.' + name + '}}', item={name: value}, sample={}
  )


@given(st.text(max_size=8), VALUES, st.text(max_size=8))
@example('{', 1, '}')
@example('}} {', 1, '} }}')
def test_the_text_around_a_reference_is_unchanged(before, value, after):
  assume('{{' not in before and '{{' not in after)
  inner = template.render('{{ item.x }}', item={'x': value}, sample={})
  assert (
    template.render(before + '{{ item.x }}' + after, item={'x': value}, sample={})
    == before + inner + after
  )


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), st.data())
def test_every_value_of_a_row_can_be_reached_by_its_path(row, data):
  path, value = 'item', row
  while path == 'item' or (isinstance(value, (dict, list)) and value and data.draw(st.booleans())):
    key = data.draw(
      st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value)))
    )
    path += f'[{key}]' if isinstance(key, int) else f'.{key}'
    value = value[key]
  rendered = template.render('{{' + path + '}}', item=row, sample={})
  assert (rendered if isinstance(value, str) else json.loads(rendered)) == value
  assert template.value_at(row, path.removeprefix('item.')) == value
  assert template.fields('{{ ' + path + ' }}') == {path.removeprefix('item.')}
  assert template.missing_fields(row, frozenset({path.removeprefix('item.')})) == {}
  for further in ('.no_such', '[7]'):  # the names and lists here are shorter
    with pytest.raises(template.Fault) as caught:
      template.render('{{' + path + further + '}}', item=row, sample={})
    assert not caught.value.is_policy_fault
    assert caught.value.errors['invalid_variable_error'] is True


@given(TEMPLATES)
@example('{{ item.a[' + '9' * 5000 + '] }}')
def test_random_text_has_problems_or_renders_or_has_a_fault(text):
  problems = template.problems(text)
  assert all(isinstance(problem, str) and problem for problem in problems)
  if problems:
    with pytest.raises(ValueError):
      template.render(text, item={}, sample={})
    return
  try:
    rendered = template.render(text, item={'item': [0]}, sample={'output_text': 'x'})
  except template.Fault as fault:
    assert fault.is_policy_fault != bool(
      template.missing_fields({'item': [0]}, template.fields(text))
    )
  else:
    assert isinstance(rendered, str) and ('{{' in text or rendered == text)


@given(st.sampled_from(['output_json', 'output_tools', 'choices', 'output_audio']), NAMES)
def test_a_missing_field_of_the_answer_is_a_policy_fault(field, name):
  with pytest.raises(template.Fault) as caught:
    template.render('{{ sample.' + field + '.' + name + ' }}', item={}, sample={'output_text': 'x'})
  key = 'sample_parse_error' if field == 'output_json' else 'invalid_variable_error'
  assert caught.value.is_policy_fault and caught.value.errors[key] is True
