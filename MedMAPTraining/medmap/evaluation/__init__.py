"""How good a bundle is: scores of every subset on a cohort, papers' tables, paired tests."""

from medmap.evaluation.scoring import (
    ScoredCase,
    ScoreRow,
    identity,
    read_rows,
    score_case,
    supported_subsets,
    write_rows,
)
from medmap.evaluation.significance import PairedTest, compare
from medmap.evaluation.store import Evaluation, Store
from medmap.evaluation.summary import groups, summarize, table, table_csv
from medmap.evaluation.tables import Summary

__all__ = [
    "Evaluation",
    "PairedTest",
    "ScoreRow",
    "ScoredCase",
    "Store",
    "Summary",
    "compare",
    "groups",
    "identity",
    "read_rows",
    "score_case",
    "summarize",
    "supported_subsets",
    "table",
    "table_csv",
    "write_rows",
]
