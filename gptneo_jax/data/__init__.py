"""Text to batches: sources, virtual streams with exact resume, tokenizers, evaluation windows."""

from gptneo_jax.data.batches import ORDER_SETTINGS, TrainBatches, merge_states
from gptneo_jax.data.compression_baselines import byte_unigram_bits_per_byte, gzip_bits_per_byte
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.evaluation import (
  EvaluationBatches,
  KeptBatches,
  evaluation_batches,
  evaluation_documents,
  mixed_documents,
)
from gptneo_jax.data.sources import check_sources, has_split, holds_records, source_files
from gptneo_jax.data.survey import amount_of_data
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
  "end_of_text_id",
  "evaluation_batches",
  "evaluation_documents",
  "find_end_of_text",
  "gzip_bits_per_byte",
  "has_split",
  "holds_records",
  "load_tokenizer",
  "merge_states",
  "mixed_documents",
  "save_tokenizer",
  "saved_tokenizer",
  "source_files",
  "vocabulary_size",
]
