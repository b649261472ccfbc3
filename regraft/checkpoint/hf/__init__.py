"""What transformers, tokenizers and PEFT make of a checkpoint, without running code from it."""
