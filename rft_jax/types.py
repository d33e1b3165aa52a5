"""Data types: Message, Item, Example, Sample, Grade, Episode, Batch, TrainState.

Dimension letters, used in every shape comment: P prompts, G samples per prompt, B = P*G
sequences, T completion tokens, S prompt tokens (or cache positions), V vocabulary, L layers,
D model, F feed-forward, N query heads, K key-value heads, H head dimension.

This module imports nothing heavy: graders import it in processes that never load jax. Device
arrays are annotated as `Array`.
"""

from typing import Any, NamedTuple, TypedDict

Array = Any  # a jax.Array or numpy.ndarray; its comment gives dtype and shape
Tree = Any  # a pytree of Arrays, most often an nnx module


class Message(TypedDict, total=False):
  """One turn of a conversation, as OpenAI's chat format spells it."""

  role: str  # developer or system (one role here), user, assistant, tool
  content: Any  # str, or a list of parts
  tool_calls: list[dict]
  tool_call_id: str
  name: str


class Item(NamedTuple):
  """One row of a data set. The whole row is `item` in a grader's templates."""

  row: dict[str, Any]  # 'messages', optional 'tools', and any other JSON
  source: str  # file and line, for messages: 'cases.jsonl:12'


class Example(NamedTuple):
  """An Item as token ids, rendered once with the chat template."""

  item: Item
  prompt_ids: list[int]  # the rendered prompt, generation prompt included
  target_ids: list[int] | None  # supervised: the completion with its end-of-turn id
  rejected_ids: list[int] | None = None  # pairs: the completion that target_ids is preferred to
  desirable: bool | None = None  # single labelled answers: whether target_ids is a good one


class Sample(NamedTuple):
  """One sampled completion. Training uses the sampled ids, never the text encoded again."""

  tokens: list[int]  # with the stop token, if one was sampled
  logprobs: list[float]  # nats, of each token at the sampling temperature, before filters
  filtered_logprobs: list[float] | None  # the same after top-k, top-p, min-p; None: unfiltered
  stop_reason: str  # 'stop' (a stop id was sampled) or 'length' (max_new_tokens reached)


class Grade(NamedTuple):
  """The reward of one answer, the scores it is made of, and errors of grading.

  reward is None after a grader fault: retried, then the whole group is dropped. components has the
  score by grader name, None where a grader gave none. errors has the raised error keys of OpenAI's
  graders/run (True, or a detail); {} without errors.
  """

  reward: float | None
  components: dict[str, float | None]
  errors: dict[str, bool | str]


class Episode(NamedTuple):
  """One graded sample with everything needed to train on it, report it and replay it."""

  item: Item
  occurrence: int  # position in the data order; the samples of one occurrence form a group
  index: int  # type: ignore[assignment]  # sample number in the group, 0..G-1; hides tuple.index
  prompt_ids: list[int]
  sample: Sample
  text: str  # the whole completion decoded, reasoning included
  output_text: str | None  # the answer, after the end marker of the reasoning; None: no marker
  reasoning_tokens: int
  grade: Grade
  policy_step: int  # the step of the policy weights that sampled it


class Batch(NamedTuple):
  """Prompts with their completions: the batch that every algorithm trains on.

  Right-padded. Row b of the completions belongs to prompt group[b]. Padding is defined by the
  lengths, never by a token id. Fields that an algorithm does not need are None.
  """

  prompts: Array  # i32[P, S]
  prompt_lengths: Array  # i32[P]
  completions: Array  # i32[B, T]
  completion_lengths: Array  # i32[B]
  group: Array  # i32[B]
  loss_mask: Array  # f32[B, T]: 1 where the token is trained, 0 on tool output and padding
  advantages: Array | None = None  # f32[B, T]
  old_logprobs: Array | None = None  # f32[B, T] nats, before this update; None: the current ones
  reference_logprobs: Array | None = None  # f32[B, T] nats, of the reference policy
  sampler_logprobs: Array | None = None  # f32[B, T] nats, as the sampler computed them
  group_tokens: Array | None = None  # f32[B], the sum of loss_mask over the row's group
  reasoning_steps: Array | None = None  # i32[B, T], the reasoning step of each token, from 0
  grades: Array | None = None  # f32[B], higher is preferred within a group; NaN: not compared
  margins: Array | None = None  # f32[B], by how much its score should exceed those of lower grade
  token_loss_weights: Array | None = None  # f32[B, T], factors on the policy loss of each token
  kl_cov_mask: Array | None = None  # f32[B, T], 1 at tokens with a KL-Cov penalty
  entropy_coef: Array | None = None  # f32[B], all equal: coefficient of this step's entropy bonus
  old_values: Array | None = None  # f32[B, T], of the critic before this update
  returns: Array | None = None  # f32[B, T], the targets of the critic
  reference_point: Array | None = None  # f32[B], all equal: KTO's z of the whole step


class TrainState(NamedTuple):
  """The state of training between steps, as saved in a checkpoint."""

  step: int  # training step, counted across stages
  policy: Tree  # a Decoder, float32
  optimizer: Tree  # the optax state of the current stage
  critic: Tree | None = None  # the value head or model: PPO's critic, or a reward model
  # State of the algorithm between steps, such as rl_batch.RLState: saved as JSON, never changed in
  # place.
  algorithm_state: Any = None
