"""What a training leaves in its folder: model or adapter, logs, curves, the card."""
