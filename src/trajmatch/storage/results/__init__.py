"""Results on disk as typed, checked values: result.json, a study's cells, log.jsonl."""

from trajmatch.storage.results.load import load_result, result_from_json
from trajmatch.storage.results.log import (
    EpochLine,
    IterationLine,
    NetworkLine,
    RunLog,
    ValidationLine,
    load_log,
)
from trajmatch.storage.results.run import (
    Cost,
    DataSummary,
    EvaluationResult,
    LibrarySummary,
    RunResult,
)
from trajmatch.storage.results.score import CEILING, EXPERTS, Score, Trained
from trajmatch.storage.results.study import Cell, Sample, StudyPlan, StudyResult
from trajmatch.storage.results.tuning import SearchedRange, Tried, TuningResult

__all__ = [
    "CEILING",
    "EXPERTS",
    "Cell",
    "Cost",
    "DataSummary",
    "EpochLine",
    "EvaluationResult",
    "IterationLine",
]
__all__ += ["LibrarySummary", "NetworkLine", "RunLog", "RunResult", "Sample", "Score"]
__all__ += ["StudyPlan", "StudyResult", "Trained", "ValidationLine", "load_log", "load_result"]
__all__ += ["SearchedRange", "Tried", "TuningResult", "result_from_json"]
