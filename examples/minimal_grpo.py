"""GRPO in about 150 lines: a policy learns to answer with the digit that the grader rewards.

  python -m rft_jax.tasks arithmetic --to=runs/minimal
  python examples/minimal_grpo.py --source=runs/minimal/base

The first command writes a tiny untrained checkpoint. Only the public functions of rft_jax are used
(load, generate, grade, export), the rest is JAX and optax. It takes a minute on a CPU; give another
Hugging Face directory as `--source`, and change CASES and GRADER. For real runs use
`python -m rft_jax.main`: it adds KL, clipping, packing, checkpoints, evaluation and the report.

The method: sample G completions of each prompt, grade them, take as advantage of a completion its
reward minus the mean of its group, divided by the group's standard deviation, and follow the policy
gradient (Shao et al. 2024, https://arxiv.org/abs/2402.03300).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rft_jax

P, G = 4, 16  # prompts a step, samples a prompt
MAX_NEW_TOKENS = 4
LEARNING_RATE = 1e-3

# OpenAI's grader JSON: 1 if the answer contains the digit of the case.
GRADER = {
  'type': 'string_check',
  'name': 'digit',
  'operation': 'like',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.digit }}',
}
CASES = [{'prompt': f'{n} + {n} =', 'digit': '7'} for n in range(P)]


# --- advantages and loss --------------------------------------------------------------------------


def group_advantages(rewards):
  """Returns (reward - mean) / std within each group, f32[P, G]; 0 where all rewards are equal."""
  centred = rewards - rewards.mean(1, keepdims=True)
  return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def policy_loss(model, tokens, lengths, prompt_lengths, advantages):
  """Returns the policy gradient loss, averaged over the completion tokens.

  Args:
    tokens: i32[B, T], prompt and completion, right-padded.
    lengths: i32[B].
    prompt_lengths: i32[B].
    advantages: f32[B].
  """
  logits = model(tokens, lengths=lengths)[:, :-1]
  logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
  logprobs = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=2)[..., 0]
  position = jnp.arange(1, tokens.shape[1])
  # The loss mask: tokens that the policy sampled, neither prompt nor padding.
  loss_mask = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
  return -(logprobs * advantages[:, None] * loss_mask).sum() / loss_mask.sum()


# --- rollout --------------------------------------------------------------------------------------


def rollout(model, tokenizer, step):
  """Samples and grades the cases; returns (samples of each prompt, prompts, rewards f64[P, G])."""
  prompts = [tokenizer.encode(case['prompt']) for case in CASES]
  groups = rft_jax.generate(
    model, prompts, samples_per_prompt=G, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=step
  )
  rewards = np.zeros((P, G))
  for p, samples in enumerate(groups):
    for g, sample in enumerate(samples):
      text = tokenizer.decode(sample.tokens, skip_special_tokens=True)
      grade = rft_jax.grade(GRADER, item=CASES[p], sample={'output_text': text})
      if grade.reward is None:  # a fault of the grader, not of the answer
        raise RuntimeError(f'the grader failed: {grade.errors}')
      rewards[p, g] = grade.reward
  return groups, prompts, rewards


def make_batch(groups, prompts):
  """Returns (tokens i32[B, T], lengths i32[B], prompt_lengths i32[B]), right-padded."""
  rows = [
    prompt + list(sample.tokens) for prompt, samples in zip(prompts, groups) for sample in samples
  ]
  width = max(map(len, prompts)) + MAX_NEW_TOKENS  # the same in every step: one compilation
  tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
  lengths = np.array([len(row) for row in rows], np.int32)
  return tokens, lengths, np.repeat([len(prompt) for prompt in prompts], G).astype(np.int32)


# --- training -------------------------------------------------------------------------------------


def train(source: str, steps: int, to: str = '') -> list[float]:
  """Trains the checkpoint in `source`; returns the mean reward of each step."""
  from transformers import AutoTokenizer

  model, config = rft_jax.load(source)
  tokenizer = AutoTokenizer.from_pretrained(source)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
  optimizer = tx.init(model)

  @jax.jit
  def update(model, optimizer, *batch):
    loss, gradients = jax.value_and_grad(policy_loss)(model, *batch)
    updates, optimizer = tx.update(gradients, optimizer, model)
    return optax.apply_updates(model, updates), optimizer, loss

  history = []
  for step in range(steps):
    groups, prompts, rewards = rollout(model, tokenizer, step)
    advantages = group_advantages(rewards).reshape(-1).astype(np.float32)
    model, optimizer, loss = update(model, optimizer, *make_batch(groups, prompts), advantages)
    history.append(float(rewards.mean()))
    print(f'step {step + 1}/{steps}  reward {rewards.mean():.3f}  loss {float(loss):+.3f}')
  if to:
    rft_jax.export(model, config, to=to, source=source)
  return history


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--source', required=True, help='HF directory or hub id')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--to', default='', help='export the result to this directory')
  args = parser.parse_args()
  train(args.source, args.steps, args.to)


if __name__ == '__main__':
  main()
