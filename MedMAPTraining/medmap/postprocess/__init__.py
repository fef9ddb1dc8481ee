"""From logits to a label map on the grid of the user's scan. torch and numpy only."""
