"""Training: data, objectives, the loop and what it leaves behind."""
