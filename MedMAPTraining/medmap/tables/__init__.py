"""``medmap table``: the papers' tables, trained, scored and printed beside their figures."""
