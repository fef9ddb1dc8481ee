"""How good a bundle is: scores of every subset on a cohort, tables as papers print them, paired tests."""

from medmap.evaluate.scoring import Row, identity, read_rows, score_case, supported_subsets, write_rows
from medmap.evaluate.significance import PairedTest, compare
from medmap.evaluate.store import Evaluation, Store
from medmap.evaluate.summary import groups, summarise, table, table_csv

__all__ = [
    "Evaluation",
    "PairedTest",
    "Row",
    "Store",
    "compare",
    "groups",
    "identity",
    "read_rows",
    "score_case",
    "summarise",
    "supported_subsets",
    "table",
    "table_csv",
    "write_rows",
]
