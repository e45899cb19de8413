"""Text to batches: sources, virtual streams with exact resume, tokenizers, evaluation windows.

The names below are what other rooms use.
"""

from gptneo_jax.data.batches import ORDER_SETTINGS, TrainBatches, merge_states
from gptneo_jax.data.compression_baselines import byte_unigram_bits_per_byte, gzip_bits_per_byte
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.corpus_size import amount_of_data, tokens_of_epoch
from gptneo_jax.data.document_nll import document_nll, one_ahead
from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.evaluation import (
  EvaluationBatches,
  KeptBatches,
  evaluation_documents,
  mixed_documents,
)
from gptneo_jax.data.files import match_files, refuse_pointer
from gptneo_jax.data.hub_revision import (
  commit_of_dataset,
  commit_of_folder,
  commit_of_model,
  split_revision,
  with_commit,
)
from gptneo_jax.data.shard_manifest import TOKENIZER as SHARDS_TOKENIZER
from gptneo_jax.data.sources import (
  check_sources,
  has_split,
  holds_records,
  open_components,
  source_files,
)
from gptneo_jax.data.tokenizer import (
  DocumentEncoder,
  check_vocabulary,
  end_of_text_id,
  find_end_of_text,
  load_tokenizer,
  save_tokenizer,
  saved_tokenizer,
  vocabulary_size,
)

__all__ = [
  "ORDER_SETTINGS",
  "SHARDS_TOKENIZER",
  "BadRecords",
  "DataConfig",
  "DataError",
  "Document",
  "DocumentEncoder",
  "EvaluationBatches",
  "KeptBatches",
  "TrainBatches",
  "amount_of_data",
  "byte_unigram_bits_per_byte",
  "check_sources",
  "check_vocabulary",
  "commit_of_dataset",
  "commit_of_folder",
  "commit_of_model",
  "document_nll",
  "end_of_text_id",
  "evaluation_documents",
  "find_end_of_text",
  "gzip_bits_per_byte",
  "has_split",
  "holds_records",
  "load_tokenizer",
  "match_files",
  "merge_states",
  "mixed_documents",
  "one_ahead",
  "open_components",
  "refuse_pointer",
  "save_tokenizer",
  "saved_tokenizer",
  "source_files",
  "split_revision",
  "tokens_of_epoch",
  "vocabulary_size",
  "with_commit",
]
