"""Computes loss and gradient of each case of compare_trl.py with the code of TRL's trainers.

  python scripts/trl_losses.py CASES.json IN.npz OUT.npz

Called by scripts/compare_trl.py, in a Python that has torch and TRL. It runs the methods of the
trainers themselves on stubs of what they use (arguments, an accelerator of one process, a model
that returns the given log-probs); it contains no loss formula. Numbers are float64.
"""

import collections
import json
import sys
import types

import numpy as np
import torch
import trl
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

Settings = types.SimpleNamespace


class Accelerator:
  """Stub for a single process: gather and reduce return their input."""

  device = torch.device('cpu')
  num_processes, process_index = 1, 0

  def gather(self, x):
    return x

  gather_for_metrics = gather

  def reduce(self, x, reduction):
    return x


class FixedOutputModel(torch.nn.Module):
  """Stub of a model in evaluation mode, whose output is fixed."""

  def __init__(self, outputs=None):
    super().__init__()
    self.outputs = outputs
    self.is_gradient_checkpointing = False
    self.eval()

  def forward(self, **inputs):
    return self.outputs


def trainer_stub(**attributes):
  metrics = {'eval': collections.defaultdict(list), 'train': collections.defaultdict(list)}
  return Settings(
    accelerator=Accelerator(),
    model=FixedOutputModel(),
    _metrics=metrics,
    aux_loss_enabled=False,
    _total_train_tokens=0,
    _tp_size=1,
    **attributes,
  )


def fused_head_output(logprobs, mask):
  """Returns the output of a model with TRL's fused head; log-probs are 0 outside the mask."""
  zeros = torch.zeros_like(mask)
  return Settings(
    log_probs=logprobs * mask,
    entropy=zeros,
    mean_logits=zeros,
    is_top1=zeros.bool(),
    log_sum_sq_probs=zeros,
  )


def with_prompt(mask):
  """Returns the mask with a prompt token before the completion: TRL scores tokens 1.. of a row."""
  return torch.cat([torch.zeros(len(mask), 1), mask], 1)


# ------------------------------------------------------------------ preferences


def dpo(logprobs, arrays, settings):
  mask = arrays['mask']
  pair_rows = torch.cat([arrays['chosen'], arrays['rejected']]).long()
  sums = (arrays['reference'] * mask).sum(1)
  inputs = {
    'input_ids': torch.zeros(len(pair_rows), mask.shape[1] + 1, dtype=torch.long),
    'attention_mask': torch.ones(len(pair_rows), mask.shape[1] + 1),
    'completion_mask': with_prompt(mask[pair_rows]).long(),
    'ref_chosen_logps': sums[arrays['chosen'].long()],
    'ref_rejected_logps': sums[arrays['rejected'].long()],
  }
  model = FixedOutputModel(fused_head_output(logprobs[pair_rows], mask[pair_rows]))
  stub = trainer_stub(
    loss_types=[settings['loss_type']],
    loss_weights=[1.0],
    beta=settings['beta'],
    label_smoothing=settings.get('label_smoothing', 0.0),
    ld_alpha=None,
    f_divergence_type=settings.get('f_divergence_type', 'reverse_kl'),
    f_alpha_divergence_coef=settings.get('f_alpha_divergence_coef', 0.5),
    use_weighting=False,
    precompute_ref_logps=True,
    args=Settings(discopop_tau=settings.get('discopop_tau', 0.05)),
  )
  return trl.DPOTrainer._compute_loss(stub, model, inputs, False)


def sides(logprobs, arrays, by_mean):
  """Returns the sums or means over tokens of the chosen and of the rejected completions."""
  values = (logprobs * arrays['mask']).sum(1)
  if by_mean:
    values = values / arrays['mask'].sum(1)
  return values[arrays['chosen'].long()], values[arrays['rejected'].long()]


def cpo(logprobs, arrays, settings):
  stub = trainer_stub(
    alpha=0.0,
    loss_type=settings['loss_type'],
    beta=settings['beta'],
    simpo_gamma=settings.get('simpo_gamma', 0.5),
    label_smoothing=settings.get('label_smoothing', 0.0),
  )
  pair = sides(logprobs, arrays, settings['loss_type'] == 'simpo')
  return CPOTrainer.cpo_loss(stub, *pair)[0].mean()


def orpo(logprobs, arrays, settings):
  stub = trainer_stub(beta=settings['beta'])
  return -ORPOTrainer.odds_ratio_loss(stub, *sides(logprobs, arrays, True))[0].mean()


def kto(logprobs, arrays, settings):
  mask = arrays['mask']
  inputs = {
    'input_ids': torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
    'attention_mask': torch.ones(len(mask), mask.shape[1] + 1),
    'completion_mask': with_prompt(mask).long(),
    'label': arrays['desirable'].bool(),
    'ref_logps': (arrays['reference'] * mask).sum(1),
    'ref_KL_logps': torch.zeros(len(mask)),
  }
  stub = trainer_stub(
    loss_type='kto',
    precompute_ref_logps=True,
    calculate_KL=True,
    _compute_kl_logps=lambda model, batch: arrays['mismatched'],
    **settings,
  )
  return trl.KTOTrainer._compute_loss(
    stub, FixedOutputModel(fused_head_output(logprobs, mask)), inputs, False
  )


def reward(logprobs, arrays, settings):
  """Reward model loss; the score of a completion is the log-prob of its first token."""
  pair_rows = torch.cat([arrays['chosen'], arrays['rejected']]).long()
  inputs = {'attention_mask': torch.ones(len(pair_rows), 1)}
  if settings.get('margin'):
    inputs['margin'] = arrays['margin']
  stub = trainer_stub(args=Settings(center_rewards_coefficient=settings.get('centring')))
  model = FixedOutputModel(Settings(logits=logprobs[pair_rows, :1]))
  return trl.RewardTrainer.compute_loss(stub, model, inputs)


# ------------------------------------------------------------------ rewards of groups


def online(Trainer, logprobs, arrays, attributes, args):
  """Loss from rewards, by the two methods of a trainer: advantages, then the loss."""
  mask, G = arrays['mask'], int(arrays['G'])
  lengths = mask.sum(1).long().tolist()
  ids = [[1] * length for length in lengths]
  prompts = [[1]] * len(ids)
  old, reference = arrays['old'], arrays['reference']
  stub = trainer_stub(
    args=Settings(
      per_device_eval_batch_size=len(ids),
      gradient_checkpointing_kwargs=None,
      steps_per_generation=1,
      gradient_accumulation_steps=1,
      **args,
    ),
    _tokenizer=Settings(pad_token_id=0),
    pad_to_multiple_of=None,
    environment_factories=None,
    environments=None,
    tools=None,
    _is_vlm=False,
    mask_truncated_completions=False,
    num_generations=G,
    num_generations_eval=G,
    num_iterations=2,
    use_vllm=False,
    ref_model='reference',
    reward_funcs=[None],
    reward_func_names=['reward'],
    reward_weights=torch.ones(1),
    multi_objective_aggregation='sum_then_normalize',
    _logs=collections.defaultdict(lambda: collections.defaultdict(list)),
    _pending_extra_logs={},
    _pending_metrics={},
    current_gradient_accumulation_steps=1,
    max_completion_length=mask.shape[1],
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    _entropy_bonus_enabled=False,
    **attributes,
  )
  for name in ('prompt', 'completion', 'advantages'):
    stub._logs[name] = []
  generated = (
    (prompts, ids, ids)
    if Trainer is trl.RLOOTrainer
    else (prompts, ids, None, ids, None, {}, None, None)
  )
  stub._generate = lambda prompts: generated
  stub._calculate_rewards = lambda *rest: arrays['rewards'].reshape(-1, 1)
  stub._get_per_token_logps_and_entropies = lambda model, *rest, **kwargs: (
    reference if model == 'reference' else old,
    None,
    None,
  )
  inputs = Trainer._generate_and_score_completions(stub, [{'prompt': p} for p in prompts])
  assert torch.equal(inputs['completion_mask'], mask.long())
  stub._get_per_token_logps_and_entropies = lambda *rest, **kwargs: (
    logprobs,
    torch.zeros_like(logprobs),
    None,
  )
  return Trainer._compute_loss(stub, stub.model, inputs)


def grpo(logprobs, arrays, settings):
  attributes = {
    'loss_type': 'grpo',
    'importance_sampling_level': 'token',
    'epsilon_low': 0.2,
    'epsilon_high': 0.28,
    'beta': 0.0,
    'scale_rewards': 'group',
  }
  args = {
    'delta': None,
    'sapo_temperature_pos': 1.0,
    'sapo_temperature_neg': 1.05,
    'use_bias_correction_kl': False,
  }
  attributes |= {name: value for name, value in settings.items() if name in attributes}
  args |= {name: value for name, value in settings.items() if name in args}
  return online(trl.GRPOTrainer, logprobs, arrays, attributes, args)


def rloo(logprobs, arrays, settings):
  attributes = {
    'epsilon_low': 0.2,
    'epsilon_high': 0.28,
    'beta': 0.0,
    'reward_clip_range': None,
    'normalize_advantages': False,
  } | settings
  return online(trl.RLOOTrainer, logprobs, arrays, attributes, {})


KINDS = {
  'dpo': dpo,
  'cpo': cpo,
  'orpo': orpo,
  'kto': kto,
  'reward': reward,
  'grpo': grpo,
  'rloo': rloo,
}


def main(argv):
  torch.set_default_dtype(torch.float64)
  with open(argv[1], encoding='utf-8') as file:
    cases = json.load(file)
  loaded = np.load(argv[2])
  results = {'version': np.array(trl.__version__)}
  for name, kind, settings in cases:
    settings = dict(settings)
    dtype = torch.float32 if settings.pop('float32', False) else torch.float64
    arrays = {key: torch.tensor(value, dtype=dtype) for key, value in loaded.items()}
    logprobs = arrays['logprobs'].clone().requires_grad_()
    loss = KINDS[kind](logprobs, arrays, settings)
    loss.backward()
    results[f'{name}/loss'] = loss.detach().double().numpy()
    results[f'{name}/gradient'] = logprobs.grad.double().numpy()
  np.savez(argv[3], **results)


if __name__ == '__main__':
  main(sys.argv)
