"""Reward models of a run: Hugging Face directories named by graders of type reward_model.

They score on the mesh of the run, with their own tokenizer and chat template. So that a step can be
replayed, the scores do not depend on the order of the answers: each batch is sorted and without
duplicates.
"""

import collections
import hashlib
import threading
from typing import Any

from rft_jax import hf
from rft_jax.data import batching
from rft_jax.data import chat as chats
from rft_jax.graders.reward_model import reward_model_names
from rft_jax.local_models.judge import without_control_tokens
from rft_jax.training.scoring import value_batch
from rft_jax.training.update import UpdateConfig


class RewardModel:
  """Scores (prompt messages, answer): the value of the head at the end of the answer's turn.

      score = RewardModel('runs/reward/export', mesh=mesh)
      score([([{'role': 'user', 'content': '1 + 1'}], '2')])   # [0.73]

  The weights are loaded at the first call. Control tokens in the text of an answer are broken up.
  An answer that cannot be scored, because the template refuses it or it is too long, gets the
  reason, a text, in place of a number.
  """

  def __init__(
    self, source: str, *, mesh, dtype: str = 'float32', update: UpdateConfig | None = None
  ):
    """Opens config and tokenizer.

    Raises:
      ValueError, OSError: the directory has no reward model, or no chat template.
    """
    if problems := hf.reward_model_problems(source):
      raise ValueError('\n'.join(problems))
    self.directory, self._mesh, self._dtype = hf.resolve(source), mesh, dtype
    self._positions = hf.read_config(self.directory).max_positions
    self._chat = chats.make(self.directory, chats.ChatConfig())
    self._update, self._critic, self._lock = update or UpdateConfig(), None, threading.Lock()

  def __call__(self, pairs: list[tuple[list[dict[str, Any]], str]]) -> list[float | str]:
    """Returns the score of each pair, or the reason why there is none."""
    ids_or_reasons = [self._ids(messages, answer) for messages, answer in pairs]
    completions = collections.defaultdict(set)  # prompt ids -> completions
    for ids in ids_or_reasons:
      if not isinstance(ids, str):
        completions[ids[0]].add(ids[1])
    scores = self._scores({prompt: sorted(completions[prompt]) for prompt in sorted(completions)})
    return [ids if isinstance(ids, str) else scores[ids] for ids in ids_or_reasons]

  def _ids(self, messages, answer) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """Returns (prompt ids, completion ids), or the reason why there are none."""
    try:
      prompt, completion = self._chat.supervised_ids(
        messages, target=without_control_tokens(self._chat, answer)
      )
    except chats.RenderError as error:
      return str(error)
    if (length := len(prompt) + len(completion)) > self._positions:
      return f'{length} tokens, and {self.directory.name} has {self._positions} positions'
    return tuple(prompt), tuple(completion)

  def _scores(self, completions) -> dict[tuple, float]:
    """Returns {(prompt, completion): score} of {prompt: [completion]}."""
    if not completions:
      return {}
    with self._lock:
      if self._critic is None:
        self._critic, _ = hf.load_reward_model(self.directory, dtype=self._dtype, mesh=self._mesh)
      batch = batching.with_score_positions(batching.from_completions(completions))
      values = value_batch(None, self._critic, batch, self._update, mesh=self._mesh)
    keys = [(prompt, completion) for prompt, group in completions.items() for completion in group]
    return {
      key: float(row[length - 1])
      for key, row, length in zip(keys, values, batch.completion_lengths)
    }


def open_reward_models(
  grader: Any, *, mesh, dtype: str = 'float32', update: UpdateConfig | None = None
) -> dict[str, RewardModel]:
  """Returns {name: RewardModel} for the reward models that a grader's JSON names.

  Raises:
    ValueError: some are not reward models; lists all of them, before any weights are loaded.
  """
  models, problems = {}, []
  for name in reward_model_names(grader):
    try:
      models[name] = RewardModel(name, mesh=mesh, dtype=dtype, update=update)
    except (ValueError, OSError) as error:
      problems.append(f'grader: model={name!r}: {error}')
  if problems:
    raise ValueError('\n'.join(problems))
  return models


def fingerprints(grader: Any) -> dict[str, str]:
  """Returns {name: sha256 of the files} for the reward models that a grader's JSON names."""
  digests = {}
  for name in reward_model_names(grader):
    digest, directory = hashlib.sha256(), hf.resolve(name)
    for path in sorted(
      path for pattern in ('*.safetensors', '*.json', '*.jinja') for path in directory.glob(pattern)
    ):
      with open(path, 'rb') as file:
        digest.update(f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
    digests[name] = digest.hexdigest()
  return digests
