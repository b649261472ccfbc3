"""The arithmetic of one optimizer step: model, loss, memory savers, optimizers."""
