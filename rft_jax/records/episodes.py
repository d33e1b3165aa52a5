"""episodes/step_000012.parquet: every graded sample of a step, with what a replay needs."""

import json
import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq

from rft_jax.records import atomic
from rft_jax.types import Episode

_JSON = ('row', 'components', 'errors')  # columns that hold JSON text
SCHEMA = pa.schema(
  [
    ('occurrence', pa.int64()),  # position in the data order; one group
    ('index', pa.int32()),  # sample number within the group
    ('source', pa.string()),  # 'cases.jsonl:12'
    ('row', pa.string()),  # the whole row, so that grades can be checked without the data files
    ('prompt_ids', pa.list_(pa.int32())),
    ('tokens', pa.list_(pa.int32())),
    ('logprobs', pa.list_(pa.float32())),  # nats
    ('filtered_logprobs', pa.list_(pa.float32())),  # null unless sampling was filtered
    ('text', pa.string()),
    ('output_text', pa.string()),  # null: the end marker of the reasoning is missing
    ('reward', pa.float64()),  # null: grader fault, not trained on
    ('components', pa.string()),
    ('errors', pa.string()),
    ('stop_reason', pa.string()),
    ('reasoning_tokens', pa.int32()),
    ('policy_step', pa.int64()),
  ]
)


def path_of(workdir, step: int) -> pathlib.Path:
  """Returns the path of the samples of a step."""
  return pathlib.Path(workdir) / 'episodes' / f'step_{int(step):06d}.parquet'


def write(workdir, step: int, episodes: list[Episode]) -> pathlib.Path:
  """Writes the graded samples of one step by rename, replacing those of an earlier attempt."""
  table = pa.Table.from_pylist([_record(episode) for episode in episodes], schema=SCHEMA)
  path = path_of(workdir, step)
  with atomic.replacing(path) as partial:
    pq.write_table(table, partial, compression='zstd')
  return path


def read(workdir, step: int, columns: list[str] | None = None) -> list[dict]:
  """Returns the samples of one step as dicts, JSON columns decoded; all columns by default.

  Raises:
    FileNotFoundError: the step has no samples; names the steps that have.
  """
  path = path_of(workdir, step)
  if not path.is_file():
    raise FileNotFoundError(
      f'{path}: no samples of step {step}; there are steps '
      f'{", ".join(map(str, steps(workdir))) or "none"}'
    )
  records = pq.read_table(path, columns=columns).to_pylist()
  for record in records:
    record.update({name: json.loads(record[name]) for name in _JSON if name in record})
  return records


def steps(workdir) -> list[int]:
  """Returns the steps that have samples, ascending."""
  folder = pathlib.Path(workdir) / 'episodes'
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  matches = (re.fullmatch(r'step_(\d+)\.parquet', name) for name in names)
  return sorted(int(match[1]) for match in matches if match)


def truncate(workdir, step: int) -> None:
  """Removes the samples of `step` and later, which a continued run writes again."""
  for later in steps(workdir):
    if later >= step:
      path_of(workdir, later).unlink()


def _record(episode):
  item, sample, grade = episode.item, episode.sample, episode.grade
  return {
    'occurrence': episode.occurrence,
    'index': episode.index,
    'source': item.source,
    'row': json.dumps(item.row, ensure_ascii=False),
    'prompt_ids': episode.prompt_ids,
    'tokens': sample.tokens,
    'logprobs': sample.logprobs,
    'filtered_logprobs': sample.filtered_logprobs,
    'text': episode.text,
    'output_text': episode.output_text,
    'reward': grade.reward,
    'components': json.dumps(grade.components, ensure_ascii=False),
    'errors': json.dumps(grade.errors, ensure_ascii=False),
    'stop_reason': sample.stop_reason,
    'reasoning_tokens': episode.reasoning_tokens,
    'policy_step': episode.policy_step,
  }
