"""The reward models of a run: Hugging Face directories that graders of type reward_model name.

They score with the run's own code, on its mesh, with tokenizer and chat template of their own. So
that a step can be replayed, the numbers do not depend on the order in which answers come: what is
asked is put in order, and what is asked twice is read once.
"""

import collections
import hashlib
import threading
from typing import Any

from rft_jax import hf
from rft_jax.data import batching
from rft_jax.data import chat as chats
from rft_jax.graders.reward_model import named_in
from rft_jax.local_models.judge import unmarked
from rft_jax.training.update import UpdateConfig, value_batch


class RewardModel:
  """Scores of (prompt messages, answer): the head's number at the end of the answer's turn.

      score = RewardModel('runs/reward/export', mesh=mesh)
      score([([{'role': 'user', 'content': '1 + 1'}], '2')])   # [0.73]

  The weights are read when it is first asked. An answer that spells control tokens is read
  without them. What cannot be scored, because the template refuses it or it is too long, gets the
  reason, a text, in place of a number.
  """

  def __init__(
    self, source: str, *, mesh, dtype: str = 'float32', update: UpdateConfig | None = None
  ):
    """Opens config and tokenizer.

    Raises:
      ValueError, OSError: there is no reward model, or no chat, in that directory.
    """
    if problems := hf.reward_model_problems(source):
      raise ValueError('\n'.join(problems))
    self.directory, self._mesh, self._dtype = hf.resolve(source), mesh, dtype
    self._positions = hf.read_config(self.directory).max_positions
    self._chat = chats.make(self.directory, chats.ChatConfig())
    self._update, self._critic, self._lock = update or UpdateConfig(), None, threading.Lock()

  def __call__(self, pairs: list[tuple[list[dict[str, Any]], str]]) -> list[float | str]:
    """Returns the score of each pair, or why there is none."""
    asked = [self._ids(messages, answer) for messages, answer in pairs]
    answers = collections.defaultdict(set)  # of each prompt
    for ids in asked:
      if not isinstance(ids, str):
        answers[ids[0]].add(ids[1])
    found = self._scores({prompt: sorted(answers[prompt]) for prompt in sorted(answers)})
    return [ids if isinstance(ids, str) else found[ids] for ids in asked]

  def _ids(self, messages, answer) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """Returns (prompt ids, completion ids), or why there are none."""
    try:
      prompt, completion = self._chat.supervised_ids(messages, target=unmarked(self._chat, answer))
    except chats.RenderError as error:
      return str(error)
    if (length := len(prompt) + len(completion)) > self._positions:
      return f'{length} tokens, and {self.directory.name} has {self._positions} positions'
    return tuple(prompt), tuple(completion)

  def _scores(self, answers) -> dict[tuple, float]:
    """Returns the score of each (prompt, completion) of {prompt: [completion]}."""
    if not answers:
      return {}
    with self._lock:
      if self._critic is None:
        self._critic, _ = hf.load_reward_model(self.directory, dtype=self._dtype, mesh=self._mesh)
      batch = batching.with_last_places(batching.from_answers(answers))
      values = value_batch(None, self._critic, batch, self._update, mesh=self._mesh)
    keys = [(prompt, answer) for prompt, some in answers.items() for answer in some]
    return {
      key: float(row[length - 1])
      for key, row, length in zip(keys, values, batch.completion_lengths)
    }


def open_all(
  grader: Any, *, mesh, dtype: str = 'float32', update: UpdateConfig | None = None
) -> dict[str, RewardModel]:
  """Returns the reward models that a grader's JSON names, by these names.

  Raises:
    ValueError: some are no reward models; all of them are told, before any weights are read.
  """
  opened, problems = {}, []
  for name in named_in(grader):
    try:
      opened[name] = RewardModel(name, mesh=mesh, dtype=dtype, update=update)
    except (ValueError, OSError) as error:
      problems.append(f'grader: model={name!r}: {error}')
  if problems:
    raise ValueError('\n'.join(problems))
  return opened


def fingerprints(grader: Any) -> dict[str, str]:
  """Returns the sha256 of the files of each reward model that a grader's JSON names."""
  found = {}
  for name in named_in(grader):
    digest, directory = hashlib.sha256(), hf.resolve(name)
    for path in sorted(
      path for pattern in ('*.safetensors', '*.json', '*.jinja') for path in directory.glob(pattern)
    ):
      with open(path, 'rb') as file:
        digest.update(f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
    found[name] = digest.hexdigest()
  return found
