"""Names of dimensions: the letters used in shapes, and the logical axes that sharding.py maps.

Letters, used as suffixes of array names and in einsum strings:
  B batch · T queries (sequence) · S keys · D hidden · H heads · K head dimension
  F MLP width · V vocabulary · P positions · N blocks of a sequence · L layers · C labels
"""

# Parameters
VOCAB = "vocab"
POSITION = "position"
EMBED = "embed"
HEADS = "heads"
HEAD_DIM = "head_dim"
MLP = "mlp"
LAYERS = "layers"  # the stacked axis of scanned blocks
NORM = "norm"
LABELS = "labels"  # outputs of a head

# Activations
BATCH = "batch"
LENGTH = "length"
ACT_EMBED = "act_embed"
ACT_HEADS = "act_heads"
ACT_MLP = "act_mlp"
ACT_VOCAB = "act_vocab"
