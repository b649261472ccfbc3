"""From answers to figures, tables, a card and a page."""
