"""The method's own studies: what each of its choices gains, measured.

A study is a value (`study.py`), `STUDIES` has them by name (`table.py`), and `run_study` runs any
of them (`running.py`).
"""

from trajmatch.studies.drift import of_sets
from trajmatch.studies.running import run_study
from trajmatch.studies.study import Study, Subject, Variant
from trajmatch.studies.table import STUDIES, quick

__all__ = ["STUDIES", "Study", "Subject", "Variant", "of_sets", "quick", "run_study"]
