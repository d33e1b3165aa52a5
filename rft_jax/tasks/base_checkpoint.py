"""Untrained base checkpoint for a built-in task: a small Llama with a tokenizer for its texts.

Written as a normal Hugging Face directory, so that it is loaded and trained like any checkpoint.
"""

import collections
import dataclasses
import os

import jax
import tokenizers
import transformers

from rft_jax import hf, models
from rft_jax.models.blocks import INIT_STD

# A piece is a word with the lower-case words after it, a JSON key with its punctuation, a digit,
# or a run of other characters.
PIECE = (
  r'[{,"\[\] ]*"[a-z_]+": ?["\[{]*'
  r'|(?:", "| )?[A-Za-z]+(?: [a-z]+)*'
  r'|[0-9]'
  r'|[^A-Za-z0-9]+'
)
END_OF_TEXT, START, END = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
THINK = ('<think>', '</think>')
TEMPLATE = (
  '{% for message in messages %}<|im_start|>'
  "{{ 'system' if message['role'] == 'developer' else message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """Size of the Llama decoder and of its vocabulary."""

  dim: int = 128
  layers: int = 2
  heads: int = 4
  kv_heads: int = 4
  mlp_dim: int = 384
  vocabulary: int = 512  # maximum number of ids, including 256 bytes and 5 special tokens

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = [
      (getattr(self, name) >= 1, f'{name}={getattr(self, name)}, need >= 1')
      for name in ('dim', 'layers', 'heads', 'kv_heads', 'mlp_dim')
    ]
    if all(valid for valid, _ in checks):
      checks += [
        (
          self.dim % (2 * self.heads) == 0,
          f'dim={self.dim}, need a multiple of 2 * heads={2 * self.heads}',
        ),
        (
          self.heads % self.kv_heads == 0,
          f'heads={self.heads}, need a multiple of kv_heads={self.kv_heads}',
        ),
      ]
    checks.append(
      (
        self.vocabulary >= 261,
        f'vocabulary={self.vocabulary}, need >= 261: 256 bytes and 5 special tokens',
      )
    )
    return [problem for valid, problem in checks if not valid]


def make(
  to: str | os.PathLike,
  texts,
  *,
  seed: int,
  dim: int,
  layers: int,
  heads: int,
  kv_heads: int,
  mlp_dim: int,
  vocabulary: int,
) -> None:
  """Writes an untrained Llama of this size and a tokenizer for the texts into the directory `to`.

  Matrices are initialized with a standard deviation of dim ** -0.5. At dim 128 that is four times
  the usual 0.02, from which a model this small does not learn enough in a minute of training.

  Raises:
    ValueError: the sizes do not fit together; the error lists all problems.
  """
  size = Config(
    dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, mlp_dim=mlp_dim, vocabulary=vocabulary
  )
  problems = size.validate()
  if problems:
    raise ValueError('\n'.join(['base checkpoint:', *problems]))
  tokenizer = make_tokenizer(texts, vocabulary=vocabulary)
  config = models.DecoderConfig(
    vocab_size=len(tokenizer),
    dim=dim,
    layers=layers,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=dim // heads,
    mlp_dim=mlp_dim,
    tied_head=True,
    max_positions=512,
    eos_ids=(tokenizer.eos_token_id,),
    pad_id=tokenizer.pad_token_id,
  )
  rescale = lambda leaf: leaf * (dim**-0.5 / INIT_STD)
  model = models.make(config, seed)
  model = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if 'norm' in jax.tree_util.keystr(path) else rescale(leaf), model
  )
  hf.save_base(model, config, tokenizer, to)


def make_tokenizer(texts, *, vocabulary: int):
  """Returns a transformers tokenizer with at most `vocabulary` ids, built from the texts.

  The most frequent pieces are tokens; other text is encoded as bytes, so that any text can be
  encoded and decodes to itself. ChatML template; the end-of-turn token is the EOS token; <think>
  and </think> are tokens that `skip_special_tokens` does not remove.
  """
  split = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECE), 'isolated'),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  special = [END_OF_TEXT, START, END, *THINK]
  counts = collections.Counter(
    piece
    for text in texts
    for part in _split_at(text, special)
    for piece, _ in split.pre_tokenize_str(part)
  )
  counts.update({'user': 1, 'assistant': 1, 'system': 1, 'Ċ': 1})  # Ċ: a newline in byte-level BPE
  byte_tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  pieces = sorted((p for p in counts if len(p) > 1), key=lambda p: (-counts[p], p))
  tokens = special + byte_tokens + pieces[: vocabulary - len(special) - len(byte_tokens)]
  # No merges: a piece in the vocabulary is one token, any other is encoded as its bytes.
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True
    )
  )
  backend.pre_tokenizer = split
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens([END_OF_TEXT, START, END])
  backend.add_tokens([tokenizers.AddedToken(t, normalized=False, special=False) for t in THINK])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token=END,
    pad_token=END_OF_TEXT,
    chat_template=TEMPLATE,
    clean_up_tokenization_spaces=False,
  )


def _split_at(text, markers):
  """Returns the parts of the text between the markers."""
  parts = [text]
  for marker in markers:
    parts = [piece for part in parts for piece in part.split(marker)]
  return parts
