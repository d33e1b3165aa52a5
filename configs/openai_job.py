"""A reinforcement job of OpenAI's fine-tuning API, unchanged, on a base model of yours.

  python -m rft_jax.main --config=configs/openai_job.py:job.json --workdir=runs/job \\
      --config.model.source=Qwen/Qwen3-0.6B

job.json is what POST /v1/fine_tuning/jobs takes, with paths for training_file and validation_file
(from the current folder, or from that of job.json):

  {"training_file": "train.jsonl", "validation_file": "validation.jsonl",
   "method": {"type": "reinforcement", "reinforcement": {
     "grader": {...}, "response_format": {...}, "hyperparameters": {"n_epochs": 2}}}}

What each "auto" became is told at the start. For a base model that thinks before it answers, say
how: --config.chat.reasoning='("<think>","</think>")'.

The values that replace "auto" were not tuned: batch_size 16, 8 samples a prompt, learning rate
1e-6, about 100 steps, an evaluation every tenth of them with 4 samples a row.
"""

from rft_jax.run import openai_job


def get_config(path: str = ''):
  """Returns the Config of the job in a file."""
  if not path:
    raise ValueError('name the job: --config=configs/openai_job.py:job.json')
  return openai_job.read(path)
