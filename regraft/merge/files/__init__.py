"""What the output gets beside its weights: config, context, tokenizer, chat template."""
