"""Sources, tokenizers, the shard format and storage; no Ray, no DeepSpeed."""
