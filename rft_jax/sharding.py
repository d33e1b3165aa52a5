"""Sharding: a device mesh with named axes, and a table from parameter names to PartitionSpecs.

The table covers the policy, the reference, the rollout copy and, because Adam's moments carry
the names of the leaves they belong to, the optimizer state. A leaf that no rule matches is an
error: otherwise a forgotten matrix would be replicated without notice.
"""

import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # the axes over which the rows of a batch are split

# First match wins. Stacked leaves have the layer axis first, and it is never split. Of a matrix,
# 'tensor' splits one of the two axes and 'fsdp' the other.
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
  """Sizes of the mesh axes; their product is the number of devices. One may be -1: inferred."""

  data: int = -1  # data parallel: weights replicated, rows split
  fsdp: int = 1  # fully sharded data parallel: weights and rows split
  tensor: int = 1  # tensor parallel: heads and feed-forward split

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
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
    fixed = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = max(len(devices) // fixed, 1)
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f'mesh: data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} is '
      f'{math.prod(sizes)} devices, found {len(devices)}; set one axis to -1'
    )
  # Mesh() has Auto axes; jax.make_mesh defaults to Explicit ones, which embeddings reject.
  return Mesh(np.asarray(devices).reshape(sizes), AXES)


def batch_shards(mesh: Mesh) -> int:
  """Returns the number of parts into which the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def name_of(path) -> str:
  """Returns a leaf's path as text: 'blocks/attention/q/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def shardings_for(tree, mesh: Mesh, rules=RULES):
  """Returns the NamedSharding of every leaf of tree (arrays or ShapeDtypeStructs).

  Raises:
    ValueError: leaves that no rule matches, or that their axes do not divide; all are named.
  """
  return _shardings_by_rule(tree, mesh, rules, lambda shape, spec: spec, check=_indivisible)


def _shardings_by_rule(tree, mesh, rules, spec_for, check=None):
  """Returns the NamedSharding of every leaf by the first rule that matches its name.

  Args:
    spec_for: (shape, spec of the rule) -> the spec to use.
    check: (name, shape, spec of the rule, mesh) -> problems; None: nothing is checked.

  Raises:
    ValueError: problems, or leaves that no rule matches; all are named.
  """
  problems = []

  def sharding_of(path, leaf):
    name = name_of(path)
    for pattern, spec in rules:
      if re.search(pattern, name):
        problems.extend(check(name, leaf.shape, spec, mesh) if check else ())
        return NamedSharding(mesh, spec_for(leaf.shape, spec))
    problems.append(f'no sharding rule for {name} {leaf.shape}')

  shardings = jax.tree_util.tree_map_with_path(sharding_of, tree)
  if problems:
    raise ValueError('\n'.join(['sharding:', *problems]))
  return shardings


def _indivisible(name, shape, spec, mesh):
  """Yields a problem for each size that the mesh axis it is split over does not divide."""
  for size, axis in zip(shape, spec):
    if axis is not None and size % mesh.shape[axis]:
      yield (
        f'{name} {shape}: {size} is not a multiple of mesh.{axis}={mesh.shape[axis]}; '
        f'choose a mesh.{axis} that divides it'
      )


def place(function, mesh: Mesh, *args):
  """Returns function(*args), with each leaf created directly in the sharding of its rule.

  Needed for optax's init too: its zeros do not depend on the input, so a plain jit puts them all
  on one device.
  """
  shardings = shardings_for(jax.eval_shape(function, *args), mesh)
  return jax.jit(function, out_shardings=shardings)(*args)


def abstract(tree, mesh: Mesh):
  """Returns tree as ShapeDtypeStructs with their shardings, as restoring a checkpoint needs it."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings_for(tree, mesh)
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: the first axis over data and fsdp, the others not split."""
  return NamedSharding(mesh, P(BATCH))


def rows_sharding(mesh: Mesh, dimensions: int) -> NamedSharding:
  """Returns the batch sharding; for scalars (dimensions == 0), which all rows share, replicated."""
  return NamedSharding(mesh, P(BATCH) if dimensions else P())


DECODING_RULES = (  # for models.decoding_layers.Layer: split over tensor alone
  (r'qkv/weight$', P(None, 'tensor')),  # [D, K, M + 2, H]
  (r'qkv/(bias|scale)$', P('tensor')),
  (r'gate_up/weight$', P(None, None, 'tensor')),  # [D, 2, F]
  (r'gate_up/(bias|scale)$', P(None, 'tensor')),
  (r'(output|down)/weight$', P('tensor')),  # [in, D]
  (r'(output|down)/(bias|scale)$', P()),
  (r'norm/scale$', P()),
)


def decoding_shardings(layers, mesh: Mesh):
  """Returns the NamedSharding of every leaf of the layers of a decoding loop.

  Decoding reads every weight for every token. Weights that RULES splits over fsdp would be gathered
  each time, so they are gathered once instead and kept whole. A leaf whose size 'tensor' does not
  divide, such as too few key-value heads, is replicated.

  Raises:
    ValueError: leaves that no rule matches; all are named.
  """

  def spec_for(shape, spec):
    divides = all(axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(shape, spec))
    return spec if divides else P()

  return _shardings_by_rule(layers, mesh, DECODING_RULES, spec_for)
