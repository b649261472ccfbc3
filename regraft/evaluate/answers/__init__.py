"""Getting a model's answers and scoring them, in one process or several."""
