"""Text to batches: sources, virtual streams with exact resume, tokenizers, evaluation windows."""
