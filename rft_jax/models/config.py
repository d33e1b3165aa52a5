"""DecoderConfig: sizes, RoPE settings and optional parts of a decoder.

A DecoderConfig is read from a checkpoint's own config.json by one of the families, or written
by hand for a small model from scratch. It is frozen and hashable, because a Decoder has it as a
static part of its tree structure.
"""

import dataclasses

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope:
  """Llama 3.1's stretching of the RoPE wavelengths, with the field names of its config.json.

  Wavelengths above original_max_positions / low_freq_factor are stretched by factor, those below
  original_max_positions / high_freq_factor are unchanged, those in between are interpolated.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int  # tokens; the context length of pretraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The structure of one decoder. Two models with equal configs have equal tree structures."""

  vocab_size: int  # V, rows of the embedding; may exceed what the tokenizer knows
  dim: int  # D
  layers: int  # L
  heads: int  # N
  kv_heads: int  # K, a divisor of N
  head_dim: int  # H, even; not always D / N
  mlp_dim: int  # F
  norm_epsilon: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: Llama3Rope | None = None
  qkv_bias: bool = False
  output_bias: bool = False  # of the projection after attention
  mlp_bias: bool = False  # of gate, up and down
  qk_norm: bool = False  # an RMS norm of length H on each query and key head
  tied_head: bool = False  # logits against the embedding, no head/kernel leaf
  max_positions: int = 2048  # tokens; the longest context the checkpoint supports
  model_type: str = 'llama'  # key in families.FAMILIES, of config.json
  eos_ids: tuple[int, ...] = ()  # every end-of-sequence id
  pad_id: int | None = None
  bos_id: int | None = None
  valid_vocab: int | None = None  # ids of the tokenizer, <= vocab_size; None means vocab_size
  dtype: str = 'float32'  # of the matrix products; the weights themselves are float32
  attention: str = 'auto'  # the implementation, a name in attention.IMPLEMENTATIONS

  def __post_init__(self):
    if self.valid_vocab is None:
      object.__setattr__(self, 'valid_vocab', self.vocab_size)

  @property
  def matrix_parameters(self) -> int:
    """The number of weights in matrix products: every layer and the head, not the embedding."""
    heads = self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)
    layer = heads + 3 * self.dim * self.mlp_dim
    return self.layers * layer + self.dim * self.vocab_size

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    sizes = (
      'vocab_size',
      'dim',
      'layers',
      'heads',
      'kv_heads',
      'head_dim',
      'mlp_dim',
      'max_positions',
    )
    problems = [
      f'{name}={getattr(self, name)!r}, need an integer >= 1'
      for name in sizes
      if not _is_count(getattr(self, name))
    ]
    if problems:
      return problems  # the checks below divide by these
    checks = (
      (
        self.heads % self.kv_heads == 0,
        f'kv_heads={self.kv_heads}, need a divisor of heads={self.heads}',
      ),
      (self.head_dim % 2 == 0, f'head_dim={self.head_dim}, need an even number'),
      (self.norm_epsilon > 0, f'norm_epsilon={self.norm_epsilon}, need > 0'),
      (self.rope_theta > 0, f'rope_theta={self.rope_theta}, need > 0'),
      (
        1 <= self.valid_vocab <= self.vocab_size,
        f'valid_vocab={self.valid_vocab}, need 1 to vocab_size={self.vocab_size}',
      ),
      (
        all(0 <= i < self.vocab_size for i in self.eos_ids),
        f'eos_ids={self.eos_ids}, need ids below vocab_size={self.vocab_size}',
      ),
      (self.dtype in DTYPES, f'dtype={self.dtype!r}, need one of {DTYPES}'),
    )
    return [problem for valid, problem in checks if not valid]


def _is_count(value):
  return isinstance(value, int) and not isinstance(value, bool) and value >= 1
