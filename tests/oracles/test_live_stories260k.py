"""A trained model, reinforced for two steps by its config, exported, and read by transformers.

Needs torch and ../shared/data/models/stories260K; `make test-oracles` runs this folder.
"""

import config_files
import hf_forward
import jax
import numpy as np
import pytest
from paths import SHARED

import rft_jax
from rft_jax import hf, models, sharding
from rft_jax.data import chat as chats
from rft_jax.records import episodes as episode_files
from rft_jax.records.checkpoint import Checkpoints

torch = pytest.importorskip('torch', reason='torch is not installed (the oracles extra)')
transformers = pytest.importorskip('transformers')

STORIES = SHARED / 'data' / 'models' / 'stories260K'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir after two steps, its config, and the policy of the exported checkpoint."""
  if not STORIES.is_dir():
    pytest.skip(f'{STORIES.name}: no ../shared/{STORIES.relative_to(SHARED)} here')
  workdir = tmp_path_factory.mktemp('stories') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(workdir.parent)  # the config writes its openings under runs/
    config = config_files.load('stories260k_grpo').get_config(str(STORIES))
    config.stages[0].steps = 2
    config.stages[0].optim.schedule = 'constant'
    # Small, and of one shape in training and evaluation: nearly all of the time is compilation.
    config.rollout.prompts_per_step = config.evaluate.rows = 4
    config.rollout.samples_per_prompt = config.evaluate.samples_per_prompt = 2
    config.rollout.max_new_tokens = 24
    config.evaluate.every = 0
    config.objective.kl_coef = 0.0
    rft_jax.train(config, workdir, quiet=True)
  mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  like = sharding.abstract(models.abstract(hf.read_config(STORIES)), mesh)
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
  return workdir, config, checkpoints.restore_policy(checkpoints.resolve('best'), like)


@pytest.fixture(scope='module')
def hf_model(run):
  workdir, _, _ = run
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    workdir / 'export', attn_implementation='eager', output_loading_info=True
  )
  assert not any(report.values()), report
  return model.eval()


@pytest.fixture(scope='module')
def stories(run):
  """The ids of some held-out openings, each with the completion of the trained policy."""
  workdir, _, _ = run
  episodes = episode_files.read(workdir / 'evaluations', 2)
  return [np.array(episode['prompt_ids'] + episode['tokens']) for episode in episodes[:8]]


def test_two_steps_changed_the_weights(run):
  _, _, policy = run
  base, _ = hf.load(STORIES)
  assert np.abs(np.asarray(policy.embed[...]) - np.asarray(base.embed[...])).max() > 1e-5


def test_exported_logits_equal_those_of_the_checkpoint(run, hf_model, stories):
  _, _, policy = run
  for ours, ids in zip(hf_forward.logits_of(policy, stories), stories):
    with torch.no_grad():
      expected = hf_model(torch.tensor(ids[None])).logits[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_exported_greedy_completions_equal_those_of_the_checkpoint(run, hf_model, stories):
  _, config, policy = run
  length = 40
  hf_model.generation_config.eos_token_id = None
  prompts = [ids[:20] for ids in stories]
  for ours, ids in zip(hf_forward.greedy(policy, prompts, length), prompts):
    prompt = torch.tensor(ids[None])
    out = hf_model.generate(
      prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=length
    )
    np.testing.assert_array_equal(ours, out[0, len(ids) :].numpy())


def test_exported_tokenizer_and_stop_ids_are_the_run_s(run):
  workdir, config, _ = run
  ours = chats.make(STORIES, config.chat)
  text = ours.prompt_text([{'role': 'user', 'content': 'Once upon a time, Lily had a cat.'}])
  tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / 'export')
  assert tokenizer(text, add_special_tokens=False)['input_ids'] == ours.encode([text])[0]
  stop = transformers.GenerationConfig.from_pretrained(workdir / 'export').eos_token_id
  assert tuple(sorted(stop)) == ours.stop_ids == (1, 2)
