"""Generated text that training and evaluation share: words, prose, facts hidden in a text."""
