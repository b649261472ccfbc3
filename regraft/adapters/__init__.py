"""The change between two checkpoints as a LoRA adapter: extracted, inspected, applied."""
