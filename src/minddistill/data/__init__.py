"""What makes batches: tasks, tokenizers, records, corpora and the loader."""
