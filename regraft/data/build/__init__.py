"""`regraft data build`: documents from sources, through steps, into a folder for training."""
