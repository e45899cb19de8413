"""Names of dimensions: the letters used in shapes, and the logical axes that sharding.py maps.

Letters, used as suffixes of array names (x_BxTxD) and in einsum strings. Everywhere:
  B rows of a batch · T positions of a sequence, queries · S keys, places of a buffer
  D hidden size · H heads · K size of a head · F width of the MLP · V vocabulary
  P positions that a model has · L layers · C labels

And in one room each:
  attention/   M segments of a row (M1: their M + 1 bounds) · b the size of a block
  model/       N tokens of any rows, flattened · R repeats of the attention pattern · J a layer's
               place in the pattern
  evals/       N scored tokens · M those whose logits exist at a time · R of these in each row
               U code points · W words · G n-grams · X texts
  generation/  N new tokens, ids of a run · M beams · R rows and those of negative prompts
               W columns of the prompts · G draft tokens · E listed ids · C candidates, biased
               sequences · Q states of the stop strings · BT, BM one axis of both
  data/        S virtual streams
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


def round_up(size: int, multiple: int) -> int:
  """The size of a dimension padded to a multiple."""
  return -(-size // multiple) * multiple
