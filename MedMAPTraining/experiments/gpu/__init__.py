"""Everything about one GPU, in at most six minutes; see ``__main__``."""
