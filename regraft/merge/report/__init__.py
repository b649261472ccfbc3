"""What a merge reports: the figures of every tensor, the lines on screen, the card."""
