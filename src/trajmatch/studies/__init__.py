"""The method's own studies: what is gained by each of its choices, as commands.

A study is a value (`study.py`), the table names them (`table.py`), and one runner carries any of
them out (`running.py`).
"""

from trajmatch.studies.drift import of_sets
from trajmatch.studies.running import run_study
from trajmatch.studies.study import Made, Study, Variant
from trajmatch.studies.table import STUDIES, quick

__all__ = ["STUDIES", "Made", "Study", "Variant", "of_sets", "quick", "run_study"]
