"""Byte-level tokenizers for tests: one id per byte, plus special tokens."""

import json

import tokenizers
import transformers

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save(
  directory,
  *,
  template=CHATML,
  special=('<|im_start|>', '<|im_end|>'),
  bos=None,
  eos='<eos>',
  eos_ids=None,
  adds_bos=False,
):
  """Writes a tokenizer to directory, and generation_config.json for eos_ids; returns directory."""
  directory.mkdir(parents=True, exist_ok=True)
  byte_tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={token: i for i, token in enumerate(byte_tokens)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  names = [name for name in (*special, bos, eos) if name]
  backend.add_special_tokens(list(dict.fromkeys(names)))
  if adds_bos:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, backend.token_to_id(bos))]
    )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=bos, eos_token=eos
  )
  tokenizer.chat_template = template
  tokenizer.save_pretrained(directory)
  if eos_ids is not None:
    (directory / 'generation_config.json').write_text(json.dumps({'eos_token_id': eos_ids}))
  return directory
