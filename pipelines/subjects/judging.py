"""What passages and a judge say of the answers: values on held-out records, and records of the judge's suite."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.config.schema import Config
from pipelines.dataset.row import Row, question
from pipelines.evaluation import faithfulness, judge
from pipelines.evaluation.ask import chosen
from pipelines.evaluation.faithfulness import Support
from pipelines.evaluation.judge import Pair
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.progress import meter
from pipelines.subjects.endpoint import Endpoint

FIELD = "evaluate.judge"


class Judging:
    """Puts claims and pairs of answers before a judge where one is configured; `about` and `notes` say how.

    Raises UserError or Unreachable where the judge can't be asked.
    """

    def __init__(self, config: Config, rows: Sequence[Row]) -> None:
        self.settings, self.seed = config.evaluate, config.seed
        self.rows = {row.id: row for row in rows}
        self.endpoint = Endpoint(self.settings.judge, FIELD) if self.settings.judge.at is not None else None
        if self.endpoint is not None:
            self.endpoint.check()
        self.notes: list[str] = []
        self.about: dict[str, str] = {}

    def faithful(self, by_subject: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
        """The records, with how far answers rest on their passages where rows have some."""
        grounded = {
            (name, record.row_id): (str(record.answer), row)
            for name, records in by_subject.items()
            for record in records
            if record.suite == HELDOUT and record.answer is not None
            if (row := self.rows[record.row_id]).context
        }
        if not grounded:
            return {name: list(records) for name, records in by_subject.items()}
        support = self._support(list(grounded.values()))
        measured = {
            key: faithfulness.measure(answer, row.answer or None, row.context or [], support.verdicts)
            for key, (answer, row) in grounded.items()
        }
        return {
            name: [
                replace(r, values=r.values | measured[name, r.row_id])
                if r.suite == HELDOUT and (name, r.row_id) in measured
                else r
                for r in records
            ]
            for name, records in by_subject.items()
        }

    def _support(self, grounded: Sequence[tuple[str, Row]]) -> Support:
        pairs = [
            pair
            for answer, row in grounded
            for pair in faithfulness.pairs_needed(answer, row.answer or None, row.context or [])
        ]
        if self.endpoint is None:
            support = faithfulness.by_overlap(pairs, self.settings.faithfulness.threshold)
        else:
            with meter("claims before the judge", len(set(pairs)), "claims") as shown:
                ask = self.endpoint.asker(faithfulness.MAX_NEW_TOKENS, shown.advance)
                support = faithfulness.by_judge(pairs, self.settings.judge.claims_prompt, ask)
            self.about |= self._described() | {"claims prompt": self.settings.judge.claims_prompt}
            self.notes.append(
                f"faithfulness: of {len(support.verdicts):,} claims the judge answered {support.num_out_of_form:,} out "
                f"of form and {support.num_errors:,} not at all"
            )
        self.about["faithfulness"] = faithfulness.METHODS[support.method]
        return support

    def preferred(self, candidate: Sequence[Record], other: Sequence[Record]) -> list[Record]:
        """A record of the judge's suite for each sampled row: the candidate's answer against the other's."""
        if self.endpoint is None or not candidate or not other or candidate[0].subject == other[0].subject:
            return []
        theirs = {record.row_id: record for record in other if record.suite == HELDOUT}
        mine = {record.row_id: record for record in candidate if record.suite == HELDOUT}
        rows = chosen(list(self.rows.values()), self.settings.judge.rows, f"judge {self.seed}")
        pairs = [
            Pair(row.id, question(row.prompt), row.answer, mine[row.id].answer, theirs[row.id].answer) for row in rows
        ]
        with meter("pairs before the judge", 2 * len(pairs), "answers") as shown:
            ask = self.endpoint.asker(judge.MAX_NEW_TOKENS, shown.advance)
            judgements = judge.pairwise(pairs, self.settings.judge.prompt, ask)
        self.about |= self._described() | {"prompt": self.settings.judge.prompt}
        return [
            replace(
                mine[one.row_id],
                suite=judge.SUITE,
                kind=other[0].subject,
                correct=None,
                error=one.error,
                options=None,
                values=one.values(),
            )
            for one in judgements
        ]

    def _described(self) -> dict[str, str]:
        return dict(self.endpoint.about) if self.endpoint else {}
