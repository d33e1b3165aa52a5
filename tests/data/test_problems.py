"""Summaries of problems."""

from row_files import row


def test_many_rows_with_the_same_problem_are_one_line(load_error):
  text = load_error(
    [row(str(i)) for i in range(500)], [row('v', gene='A')], item_fields=frozenset({'gene'})
  )
  lines = text.splitlines()
  assert len(lines) == 2 and 'lines 1, 2, 3, 4, 5 and 495 more' in lines[1]
  assert 'item.gene' in lines[1] and 'E_ITEM_FIELD_MISSING' in lines[1]
