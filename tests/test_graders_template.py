"""Templates: golden renderings, faults with their culprit, and what is refused unrendered."""
import pytest

from rft_jax.graders import template

ITEM = {
    'answer': 'BRCA2', 'count': 3, 'ratio': 1.5, 'yes': True, 'none': None,
    'genes': [{'name': 'naïve', 'ids': [1, 2]}, {'name': 'b'}], 'ground-truth': {'date': '2024'},
    'messages': [{'role': 'user', 'content': 'a: "b"'}],
}
SAMPLE = {
    'output_text': ' x\n', 'output_json': {'genes': ['A', 'B'], 'deep': {'k': [[7]]}},
    'output_tools': [{'function': {'name': 'look', 'arguments': '{"q": 1}'}}],
}


@pytest.mark.parametrize('text, expected', [
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
])
def test_golden_renderings(text, expected):
  assert template.problems(text) == []
  assert template.render(text, item=ITEM, sample=SAMPLE) == expected


def test_a_rendered_value_is_not_rendered_again():
  item = {'answer': '{{ sample.output_text }}'}
  assert template.render('{{ item.answer }}', item=item, sample={}) == '{{ sample.output_text }}'


@pytest.mark.parametrize('text, words', [
    ('{{ reference.answer }}', ["'reference'", 'item or sample']),
    ('{{ smaple.output_text }}', ["did you mean 'sample'"]),
    ('{{ answer }}', ['{{ item.answer }}']),
    ('{{ item }}', ['names no field']),
    ('{{ item[0] }}', ['names no field']),
    ('{{ sample.output_txt }}', ["did you mean 'output_text'"]),
    ('{{ sample.output_text.gene }}', ['output_text is a string']),
    ('{{ item.a + 1 }}', ['no reference']),
    ('{{ item.a|upper }}', ['no reference']),
    ('{{ item["a"] }}', ['no reference']),
    ('{{ item.a[-1] }}', ['no reference']),
    ('{{ item..a }}', ['no reference']),
    ('{{}}', ['no reference']),
    ('ab {{ item.a', ['character 4', 'not closed']),
    (7, ['need a string']),
])
def test_a_template_that_is_wrong_for_every_answer_has_problems(text, words):
  found = template.problems(text)
  assert len(found) == 1
  assert all(word in found[0] for word in words), found


def test_two_mistakes_in_one_template_are_both_named():
  found = template.problems('{{ itme.a }} {{ item.fine }} {{ sample.text }}')
  assert len(found) == 2 and 'itme' in found[0] and "'text'" in found[1]


@pytest.mark.parametrize('text, of_policy, key, words', [
    ('{{ item.answr }}', False, 'invalid_variable_error', ["did you mean 'answer'"]),
    ('{{ item.genes[2] }}', False, 'invalid_variable_error', ['genes has 2 elements']),
    ('{{ item.genes.name }}', False, 'invalid_variable_error', ['genes is an array']),
    ('{{ item.answer.x }}', False, 'invalid_variable_error', ['answer is a string']),
    ('{{ item.count[0] }}', False, 'invalid_variable_error', ['count is a number']),
    ('{{ sample.output_json.gene }}', True, 'invalid_variable_error', ["did you mean 'genes'"]),
    ('{{ sample.output_audio }}', True, 'invalid_variable_error', ['output_audio']),
])
def test_a_missing_value_is_a_fault_that_names_it(text, of_policy, key, words):
  with pytest.raises(template.Fault) as caught:
    template.render(text, item=ITEM, sample=SAMPLE)
  errors = caught.value.errors
  assert caught.value.of_policy is of_policy
  assert set(errors) == {key, key + '_details'} and errors[key] is True
  assert all(word in errors[key + '_details'] for word in words), errors


def test_output_json_of_a_text_that_is_not_json_is_a_parse_error_of_the_policy():
  with pytest.raises(template.Fault) as caught:
    template.render('{{ sample.output_json.a }}', item={}, sample={'output_text': 'no'})
  assert caught.value.of_policy and caught.value.errors['sample_parse_error'] is True


@pytest.mark.parametrize('texts', [
    ['{{ sample.output_json }}{{ item.nowhere }}'],
    ['{{ sample.output_json }}', '{{ item.nowhere }}'],
])
def test_a_missing_field_of_the_row_outranks_what_the_answer_lacks(texts):
  with pytest.raises(template.Fault) as caught:
    template.render_all(texts, item={}, sample={})
  assert not caught.value.of_policy


def test_fields_are_the_paths_of_item_that_are_read():
  text = '{{ item.a }}{{item.b.c[0].d}} {{ sample.output_json.z }} {{ item.a }}'
  assert template.fields(text) == {'a', 'b.c[0].d'}


def test_missing_tells_which_paths_a_row_lacks():
  found = template.missing(ITEM, frozenset({'answer', 'genes[0].name', 'genes[0].nam', 'none.x'}))
  assert set(found) == {'genes[0].nam', 'none.x'}
  assert "did you mean 'name'" in found['genes[0].nam'] and 'none is null' in found['none.x']
