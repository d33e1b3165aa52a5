"""Where every array lives: a mesh with named axes, and one table of (leaf path, axes).

The table covers the policy, the reference, the rollout copy and, because Adam's moments carry
the names of the leaves they belong to, the optimizer state. A leaf that no rule matches is an
error: a forgotten matrix would otherwise be replicated in silence.
"""

import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # the axes over which rows of a batch are split

# First match wins. Stacked leaves have the layer axis first, and it is never split. Matrices are
# split over fsdp on the axis that a product does not share between devices of one tensor group.
RULES = (
  (r'embed$', P('tensor', 'fsdp')),  # [V, D]
  (r'head/kernel$', P('fsdp', 'tensor')),  # [D, V]
  (r'score/kernel$', P('fsdp')),  # [D, 1]
  (r'(q|k|v|gate|up)/kernel$', P(None, 'fsdp', 'tensor')),  # [L, in, out]
  (r'(o|down)/kernel$', P(None, 'tensor', 'fsdp')),
  (r'(q|k|v|gate|up)/bias$', P(None, 'tensor')),
  (r'(o|down)/bias$', P()),
  (r'norm/scale$', P()),
  (r'(^|/)count$', P()),  # optax counters
  (r'(^|/)step$', P()),
)


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
  """Sizes of the mesh axes; their product is the number of devices. One may be -1: the rest."""

  data: int = -1  # copies of the weights, rows split
  fsdp: int = 1  # weights and rows split
  tensor: int = 1  # heads and feed-forward split

  def validate(self) -> list[str]:
    sizes = {axis: getattr(self, axis) for axis in AXES}
    problems = [
      f'{axis}={size}, need a size >= 1, or -1 for the remaining devices'
      for axis, size in sizes.items()
      if size < 1 and size != -1
    ]
    if list(sizes.values()).count(-1) > 1:
      problems.append(f'{sizes}, need at most one -1')
    return problems


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
  """Returns a Mesh with the axes (data, fsdp, tensor) over the devices, all of them by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  if -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = max(len(devices) // known, 1)
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f'mesh: data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} is '
      f'{math.prod(sizes)} devices, found {len(devices)}; set one axis to -1'
    )
  # Mesh() has Auto axes; jax.make_mesh defaults to Explicit ones, which embeddings reject.
  return Mesh(np.asarray(devices).reshape(sizes), AXES)


def batch_shards(mesh: Mesh) -> int:
  """Returns into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def name_of(path) -> str:
  """Returns a leaf's path as text: 'blocks/attention/q/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def shardings_for(tree, mesh: Mesh, rules=RULES):
  """Returns the NamedSharding of every leaf of tree (arrays or ShapeDtypeStructs).

  Raises:
    ValueError: leaves that no rule matches, or that their axes do not divide; all are named.
  """
  problems = []

  def one(path, leaf):
    name = name_of(path)
    for pattern, spec in rules:
      if re.search(pattern, name):
        problems.extend(_indivisible(name, leaf.shape, spec, mesh))
        return NamedSharding(mesh, spec)
    problems.append(f'no sharding rule for {name} {leaf.shape}')

  shardings = jax.tree_util.tree_map_with_path(one, tree)
  if problems:
    raise ValueError('\n'.join(['sharding:', *problems]))
  return shardings


def _indivisible(name, shape, spec, mesh):
  for size, axis in zip(shape, spec):
    if axis is not None and size % mesh.shape[axis]:
      yield (
        f'{name} {shape}: {size} is not a multiple of mesh.{axis}={mesh.shape[axis]}; '
        f'choose a mesh.{axis} that divides it'
      )


def place(function, mesh: Mesh, *args):
  """Returns function(*args), each leaf born on the shards that the rules give it.

  Needed for optax's init too: its zeros do not depend on the input, so a bare jit puts them all
  on one device.
  """
  shardings = shardings_for(jax.eval_shape(function, *args), mesh)
  return jax.jit(function, out_shardings=shardings)(*args)


def abstract(tree, mesh: Mesh):
  """Returns tree as ShapeDtypeStructs that carry their shardings: the form of a restore."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings_for(tree, mesh)
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp, everything else whole."""
  return NamedSharding(mesh, P(BATCH))


def rows_sharding(mesh: Mesh, dimensions: int) -> NamedSharding:
  """The first axis over data and fsdp; numbers and keys that all rows share are replicated."""
  return NamedSharding(mesh, P(BATCH) if dimensions else P())


DECODING_RULES = (  # of models.decoding.Layer: split over tensor alone
  (r'qkv/weight$', P(None, 'tensor')),  # [D, K, M + 2, H]
  (r'qkv/(bias|scale)$', P('tensor')),
  (r'gate_up/weight$', P(None, None, 'tensor')),  # [D, 2, F]
  (r'gate_up/(bias|scale)$', P(None, 'tensor')),
  (r'(output|down)/weight$', P('tensor')),  # [in, D]
  (r'(output|down)/(bias|scale)$', P()),
  (r'norm/scale$', P()),
)


def decoding_shardings(layers, mesh: Mesh):
  """Returns where the layers of a decoding loop live, which reads every weight for every token.

  What RULES split over fsdp would be gathered each time, so it is gathered once, and whole. Where
  tensor does not divide the key-value heads, each device has them all.
  """

  def split(leaf, spec):
    return all(axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(leaf.shape, spec))

  def one(path, leaf):
    spec = next(spec for pattern, spec in DECODING_RULES if re.search(pattern, name_of(path)))
    return NamedSharding(mesh, spec if split(leaf, spec) else P())

  return jax.tree_util.tree_map_with_path(one, layers)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def partition(tree, pattern: str):
  """Splits tree in two of the same structure: leaves whose name matches, and the others.

  Absent leaves are None. combine() is the inverse.
  """

  def pick(wanted):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: x if bool(re.search(pattern, name_of(path))) == wanted else None, tree
    )

  return pick(True), pick(False)


def combine(first, second):
  """Joins what partition() split."""
  return jax.tree.map(
    lambda x, y: y if x is None else x, first, second, is_leaf=lambda x: x is None
  )
